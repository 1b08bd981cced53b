"""Store: arrays on the disk that took long to make, each under a digest of everything it was made from.

A file's name is that digest: of the picture's bytes, the network's parameters, the crop .. So an entry is never stale.
Where any of these changes, its name is another, and it is made again. Each file is written whole or not at all, after
its numbers were found to be finite, and has its own sha256 in it. A store that was left half-filled is filled up.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sdjax.core.files import write

SHA256 = "sha256"


@dataclass(frozen=True)
class Store:
    """Entries below a folder. what: they are, for messages, as "latents"."""

    folder: Path
    what: str

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return Path(self.folder) / key[:2] / f"{key}.safetensors"

    def write(self, key: str, arrays: Mapping[str, np.ndarray], dtype: DTypeLike, of: str) -> None:
        """Writes an entry. of: what it was made of. Raises ValueError for numbers that are not finite, OSError."""
        with np.errstate(over="ignore"):
            whole = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
        for name, array in whole.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    f"the {self.what} of {of} are not finite ({name}, as {array.dtype}) and are not kept: encode them "
                    "in float32, or keep them in float32"
                )
        write(save(whole, {SHA256: _digest(whole)}), self.path(key), f"the {self.what}")

    def read(self, key: str) -> dict[str, np.ndarray] | None:
        """An entry, or None where there is none. Raises ValueError for one that is damaged."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                said = (file.metadata() or {}).get(SHA256)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and its {self.what} are made again") from None
        if said != _digest(arrays):
            raise ValueError(f"{path} is damaged: its numbers are not those that were written; delete it")
        return arrays

    def good(self, key: str) -> bool:
        """Whether an entry is there and whole; one that is damaged is as good as none."""
        try:
            return self.read(key) is not None
        except ValueError:
            return False


def key(*parts: Any) -> str:
    """The digest under which something is kept: sha256, in hex, of texts, numbers and arrays in lists and dicts."""
    return hashlib.sha256(json.dumps(parts, default=_plain, sort_keys=True).encode()).hexdigest()


def digest(params: Any) -> str:
    """sha256, in hex, of a network's parameters with their names."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(params))[0]
    return _digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "numbers": value.tolist()}
    raise TypeError(f"no part of a key: {type(value).__name__}")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    made = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        made.update(f"{name} {array.dtype} {array.shape}".encode())
        made.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return made.hexdigest()
