"""JAX's persistent compilation cache, on by default: what one process compiled, the next one reads from disk.

The cache is a setting of the whole process (JAX keeps it in `jax.config`); it is left alone where the user has
already chosen a folder, by `JAX_COMPILATION_CACHE_DIR` or in code.
"""

import os
import warnings
from pathlib import Path

import jax


def default_folder() -> Path:
    """The user's cache folder for compiled programs: $XDG_CACHE_HOME/sdjax or ~/.cache/sdjax."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sdjax" / "compiled"


def enable(folder: str | os.PathLike[str] | None = None) -> None:
    """Turns the cache on in `folder` (the user's cache folder by default). A folder that cannot be made: a warning.

    Programs that took over a tenth of a second to compile are kept; JAX's own limit of a second would leave out most
    of a small model's.
    """
    if folder is None and getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    path = Path(folder or default_folder())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"no compilation cache: {path} cannot be made ({error.strerror})", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
