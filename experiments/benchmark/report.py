"""What a run wrote down: on which machine, and a file that is whole at any time."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any


def check_out(path: str | None) -> None:
    """Raises ValueError, before anything is measured, where the file could not be written."""
    if path and (not Path(path).parent.is_dir() or Path(path).is_dir()):
        raise ValueError(f"--out={path}: there is no folder {Path(path).parent}, or a folder of that name")


def write(path: str | None, found: dict[str, Any]) -> None:
    """All that there is so far."""
    if path:
        new = Path(f"{path}.new")
        new.write_text(json.dumps(found, indent=2) + "\n")
        new.rename(path)


def read(path: str) -> dict[str, Any]:
    """What `write` wrote. Raises ValueError."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--table={path} is no file that --out wrote: {error}") from None


def on_gpu() -> bool:
    """Whether JAX computes on a GPU here; takes none of its memory for good."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    return jax.default_backend() == "gpu"


def machine() -> dict[str, str]:
    """What this ran on and with, in words."""
    import jax

    kind = jax.devices()[0].device_kind
    device = f"{len(os.sched_getaffinity(0))} CPU cores" if kind == "cpu" else kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "diffusers"))
    return {"device": device, "versions": versions}
