"""How a checkpoint's tensors are called and laid out, and how ours are.

A parameter's path is the checkpoint's own name, one dictionary per module, so a name is the path joined by
dots with its last word translated:

    (1)   ("down_blocks.0", "resnets.1", "conv1", "kernel")  <->  down_blocks.0.resnets.1.conv1.weight

torch keeps kernels output first; here the contracted axis stands where `lax.conv` and `x @ W` want it:

    (2)   convolution  [o, i, h, w]  <->  [h, w, i, o]
    (3)   linear       [o, i]        <->  [i, o]

Everything else (embeddings, norms, biases) is the same in both. Some tensors have had other names:

* the VAE's attention was `query, key, value, proj_attn` before diffusers 0.15, and still is in most files on
  the Hub;
* the text encoder lost its `text_model.` prefix in files written by transformers 5.6 and later.

A `Layout` remembers which of these a file used, so that saving gives back what was loaded.

In the layout before diffusers (`ldm`, `openclip`) names differ altogether, and a tensor may hold three parameters. So
reading knows parameters by their `Place`s alone, whatever the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from sdjax.core.tree import Path, Shape

DTYPES = {"F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16), "F32": np.dtype(np.float32)}
# Eight bits are for storage: every such number is one of float16's, which is what they are read as and saved in.
NARROW = {
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn), "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(jnp.float8_e4m3fnuz), "F8_E5M2FNUZ": np.dtype(jnp.float8_e5m2fnuz),
}  # fmt: skip
WIDE = {"F64": np.dtype(np.float64)}  # of tools that forgot to cast; nothing is computed in it, so float32 is read
READABLE = DTYPES | NARROW | WIDE
READ_AS = dict.fromkeys(NARROW, "F16") | dict.fromkeys(WIDE, "F32")  # the dtype for those not in DTYPES
_STRIP = 32  # columns of a matrix that are turned together
WEIGHT_LEAVES = ("kernel", "scale", "embedding")

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_VAE_ATTENTION = re.compile(r"((?:encoder|decoder)\.mid_block\.attentions\.\d+)\.(to_q|to_k|to_v|to_out\.0)\.(\w+)")
# In a 1x1 convolution's place there may be a linear layer and the other way round: the numbers are the same.
_POINTWISE = re.compile(r"(.*\.)?attentions\.\d+\.(proj_in|proj_out|to_q|to_k|to_v|to_out\.0)\.weight")
_BUFFERS = re.compile(r"((text|vision)_model\.)?embeddings\.position_ids")


@dataclass(frozen=True)
class Place:
    """Where a parameter may lie in a file.

    Attributes:
      name: of the tensor. shapes: those it may have, the usual one first.
      part: (i, n) where the tensor holds n parameters one after the other, as OpenCLIP's q, k and v, and this is the
        i-th of them, the first being 0.
      as_ours: whether its axes are in our order already (OpenCLIP's text projection is meant for x @ W).
    """

    name: str
    shapes: tuple[Shape, ...]
    part: tuple[int, int] | None = None
    as_ours: bool = False


Places = Callable[[Path, Shape], list[Place]]


@dataclass(frozen=True)
class Stored:
    """How one parameter lay in its file: `dtype` as safetensors spells it, `file` without its folder."""

    name: str
    shape: Shape
    dtype: str
    file: str


@dataclass(frozen=True)
class Layout:
    """How a component's folder lay on disk: all that its parameters do not say.

    `kept` are tensors that are no parameters (CLIP's `position_ids`) by (file, name); `metadata` is each
    file's own; `index` is the shard index's (file name, text).
    """

    tensors: Mapping[Path, Stored]
    metadata: Mapping[str, Mapping[str, str]]
    config: str
    kept: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    index: tuple[str, str] | None = None

    def told(self, file: str, metadata: Mapping[str, str]) -> Layout:
        """The same, with more said in a file's metadata."""
        return replace(self, metadata={**self.metadata, file: {**self.metadata.get(file, {}), **metadata}})


def tensor_name(path: Path) -> str:
    """The checkpoint's name of the parameter at `path`, equation (1), as diffusers has it."""
    return ".".join((*path[:-1], "weight" if path[-1] in WEIGHT_LEAVES else path[-1]))


def spellings(path: Path) -> list[str]:
    """Every name under which the parameter at `path` is found in files, today's first."""
    name = tensor_name(path)
    if found := _VAE_ATTENTION.fullmatch(name):
        module, projection, leaf = found.groups()
        return [name, f"{module}.{_OLD_ATTENTION[projection]}.{leaf}"]
    return [name, name.removeprefix("text_model.")] if path[0] == "text_model" else [name]


def is_buffer(name: str) -> bool:
    """Whether `name` is a constant that some files carry and no network needs."""
    return _BUFFERS.fullmatch(name) is not None


def file_shapes(path: Path, shape: Shape) -> list[Shape]:
    """The shapes that a parameter of `shape` may have in a file, equations (2) and (3), the usual one first.

    The VAE's attention and the U-Net's transformers begin and end with 1x1 convolutions in some models and with linear
    layers in others, and tools write either for either: [o, i, 1, 1] stands for [o, i] there, and [o, i] for it.
    """
    if path[-1] != "kernel":
        return [shape]
    usual: Shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
    if not _POINTWISE.fullmatch(tensor_name(path)) or usual[2:] not in ((), (1, 1)):
        return [usual]
    return [usual, usual[:2] if len(usual) == 4 else (*usual, 1, 1)]


def places(path: Path, shape: Shape) -> list[Place]:
    """Where the parameter at `path` may lie in the diffusers layout."""
    return [Place(name, tuple(file_shapes(path, shape))) for name in spellings(path)]


def from_file(path: Path, stored: np.ndarray) -> np.ndarray:
    """A view of a file's array, [o, i, h, w] or [o, i] if a kernel, in our order of axes."""
    if path[-1] != "kernel":
        return stored
    return stored.transpose(2, 3, 1, 0) if stored.ndim == 4 else stored.T


def to_file(path: Path, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_file`: our array in the file's axis order, contiguous."""
    if path[-1] == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    if array.flags.c_contiguous:
        return array
    found = np.empty(array.shape, array.dtype)
    copy(from_file(path, found), from_file(path, array))
    return found


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[:] = source`, cast, for arrays of which one may lie in memory the other way round.

    In strips that fit the cache: read or written across the rows at once, a square matrix takes ten times as long.
    """
    if target.ndim < 2 or source.flags.c_contiguous == target.flags.c_contiguous:
        np.copyto(target, source, casting="unsafe")
        return
    for start in range(0, target.shape[-1], _STRIP):
        np.copyto(target[..., start : start + _STRIP], source[..., start : start + _STRIP], casting="unsafe")
