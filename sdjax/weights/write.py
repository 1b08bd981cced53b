"""Safetensors files, written tensor by tensor, whole or not at all (`core.files`).

Of a checkpoint's tensors only one at a time is
copied into the file's order of axes, where safetensors' own writer for NumPy would hold them all twice. What comes out
is what that writer gives, byte for byte: a header in compact JSON padded to eight bytes, then the tensors by dtype,
the widest first, and by name (https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.core.errors import CheckpointError
from sdjax.core.files import whole
from sdjax.core.tree import Shape

# In safetensors' own order, which is that of the tensors in a file, backwards. Not all are for parameters.
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool), "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(jnp.float8_e5m2), "F8_E4M3": np.dtype(jnp.float8_e4m3fn), "I16": np.dtype(np.int16),
    "F8_E4M3FNUZ": np.dtype(jnp.float8_e4m3fnuz), "F8_E5M2FNUZ": np.dtype(jnp.float8_e5m2fnuz),
    "U16": np.dtype(np.uint16), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16),
    "I32": np.dtype(np.int32), "U32": np.dtype(np.uint32), "F32": np.dtype(np.float32), "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64), "U64": np.dtype(np.uint64),
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANK = {code: rank for rank, code in enumerate(DTYPES)}


@dataclass(frozen=True)
class Draft:
    """A tensor to be written: `make` gives its numbers when their turn has come."""

    dtype: str
    shape: Shape
    make: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "Draft":
        """An array as it is."""
        return cls(_CODES[array.dtype], array.shape, lambda: array)

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_tensors(tensors: Mapping[str, Draft], metadata: Mapping[str, str], path: Path) -> None:
    """Write a safetensors file, in place: see `write_file`. Raises OSError."""
    with open(path, "wb") as file:
        for part in parts(tensors, metadata):
            file.write(part)


def parts(tensors: Mapping[str, Draft], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: its header with the length before it, then each tensor's."""
    order = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        draft = tensors[name]
        stop = start + draft.bytes
        entries[name] = {"dtype": draft.dtype, "shape": list(draft.shape), "data_offsets": [start, stop]}
        start = stop
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in order:
        draft = tensors[name]
        array = np.ascontiguousarray(draft.make()).astype(DTYPES[draft.dtype], copy=False)
        assert array.size == math.prod(draft.shape), name
        yield array.reshape(-1).view(np.uint8).data


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file, whole or not at all. Raises CheckpointError."""
    try:
        whole(path, write)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}; nothing was left half-written") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole. Raises CheckpointError."""
    write_file(path, lambda unfinished: unfinished.write_bytes(content))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises CheckpointError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error}") from error
