"""From a folder in the diffusers layout to parameters, strictly.

Names and shapes are settled from the files' headers first: every parameter has its tensor, every tensor its
parameter, every shape is right, or one error lists what is not. Only then are the weights read, one tensor at
a time from a memory map whose pages are given back at once, so that the peak is the parameters' own bytes and
one tensor more. A tensor that holds NaN or an infinity is refused: it would paint a black picture half an
hour later.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from safetensors import safe_open

from sdjax.weights import names
from sdjax.weights.files import Entry, Header, component_headers, parse_json, read_json, read_text
from sdjax.weights.names import DTYPES, CheckpointError, Layout, Stored, listing, nearest

__all__ = ["ModelIndex", "read_component", "read_index", "read_json", "side_files"]

PIPELINES = ("StableDiffusionPipeline",)
COMPONENTS = {
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
        "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
    ),
}  # fmt: skip
IGNORED = ("safety_checker", "feature_extractor", "image_encoder")

_CHUNK = 1 << 20  # elements looked at in one go for NaN: the mask stays in cache


@dataclass(frozen=True)
class ModelIndex:
    """A checkpoint's `model_index.json`: the class of each component in use, and those left alone."""

    folder: Path
    pipeline: str
    components: Mapping[str, str]
    ignored: tuple[str, ...]
    text: str


def read_index(folder: str | os.PathLike[str]) -> ModelIndex:
    """Read and check `folder/model_index.json`. Raises CheckpointError for a class that is not supported."""
    path = Path(folder) / "model_index.json"
    if not path.parent.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    text = read_text(path)
    found = parse_json(text, path)
    pipeline = found.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(f"{path}: _class_name {pipeline!r} is not supported; supported: {', '.join(PIPELINES)}")
    pairs = {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 2}
    present = {name: kind for name, (_, kind) in pairs.items() if kind is not None}
    for name in present:
        if name not in COMPONENTS and name not in IGNORED:
            raise CheckpointError(f"{path}: component {name!r} is not known{nearest(name, COMPONENTS)}")
    for name, classes in COMPONENTS.items():
        if present.get(name) not in classes:
            raise CheckpointError(
                f"{path}: {name} is {present.get(name, 'missing')!r}; supported: {', '.join(classes)}"
            )
    components = {name: present[name] for name in COMPONENTS}
    return ModelIndex(path.parent, pipeline, components, tuple(n for n in IGNORED if n in present), text)


def side_files(index: ModelIndex) -> dict[str, bytes]:
    """What a checkpoint holds beside its networks, by path from its root, so that saving can write it back.

    That is `tokenizer/`, `scheduler/` and `model_index.json`, the latter as it stands unless it names
    components that are left alone: those become `[null, null]`, since their folders are not written and
    diffusers would look for them.
    """
    found: dict[str, bytes] = {}
    for part in ("tokenizer", "scheduler"):
        for path in sorted((index.folder / part).glob("*")):
            if path.is_file():
                found[f"{part}/{path.name}"] = path.read_bytes()
    text = index.text
    if index.ignored:
        text = json.dumps(json.loads(text) | {name: [None, None] for name in index.ignored}, indent=2) + "\n"
    return {"model_index.json": text.encode(), **found}


def on_device(array: np.ndarray) -> jax.Array:
    """`array` on jax's default device, the transfer finished: one under way holds its host copy as well."""
    return jax.block_until_ready(jax.device_put(array))


def read_component(
    folder: str | os.PathLike[str],
    expected: Mapping[str, Any],
    *,
    variant: str | None = None,
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = on_device,
) -> tuple[dict[str, Any], Layout]:
    """A component's parameters, and the record of how they lay in their files.

    `expected` is a nested dict of `jax.ShapeDtypeStruct` (from `jax.eval_shape`); its shapes count, its
    dtypes do not. `dtype=None` keeps each tensor's own. Each array goes through `place` as soon as it is
    read, so that host and device never both hold the whole; `place=np.asarray` keeps all on the host. Raises
    CheckpointError.
    """
    folder = Path(folder)
    headers, index = component_headers(folder, variant)
    wanted = {path: tuple(leaf.shape) for path, leaf in names.flatten(expected).items()}
    stored = _match(wanted, headers, folder)
    config = read_text(folder / "config.json")
    params = {path: place(array) for path, array in _read(stored, wanted, headers, dtype)}
    kept = {(h.path.name, name): _buffer(h, name) for h in headers for name in h.tensors if names.is_buffer(name)}
    metadata = {header.path.name: header.metadata for header in headers}
    return names.unflatten({path: params[path] for path in wanted}), Layout(stored, metadata, config, kept, index)


def _match(wanted: Mapping[names.Path, names.Shape], headers: list[Header], folder: Path) -> dict[names.Path, Stored]:
    """Each parameter's tensor, or one CheckpointError that lists all that is wrong."""
    held = {name: header for header in headers for name in header.tensors if not names.is_buffer(name)}
    stored: dict[names.Path, Stored] = {}
    faults: dict[str, list[str]] = {
        "missing": [],
        "duplicate": [],
        "of the wrong shape": [],
        "of the wrong dtype": [],
    }
    unused = dict.fromkeys(held)
    for path, shape in wanted.items():
        there = [name for name in names.spellings(path) if name in held]
        for name in there:
            del unused[name]
        if len(there) != 1:
            faults["duplicate" if there else "missing"].append(", ".join(there) or names.tensor_name(path))
            continue
        header, entry = held[there[0]], held[there[0]].tensors[there[0]]
        stored[path] = Stored(there[0], entry.shape, entry.dtype, header.path.name)
        if entry.shape not in (shapes := names.file_shapes(path, shape)):
            expected = " or ".join(str(list(one)) for one in shapes)
            faults["of the wrong shape"].append(f"{there[0]}: expected {expected}, found {list(entry.shape)}")
        if entry.dtype not in DTYPES:
            faults["of the wrong dtype"].append(f"{there[0]}: expected {' or '.join(DTYPES)}, found {entry.dtype}")
    faults["missing"][:8] = [name + nearest(name, unused) for name in faults["missing"][:8]]
    faults["unexpected"] = list(unused)
    if any(faults.values()):
        raise CheckpointError(_report(faults, headers, folder))
    return stored


def _report(faults: Mapping[str, list[str]], headers: list[Header], folder: Path) -> str:
    files = ", ".join(header.path.name for header in headers[:3]) + (", ..." if len(headers) > 3 else "")
    parts = [f"\n  {len(found)} {what}:{listing(found)}" for what, found in faults.items() if found]
    remedy = "\n  config.json and the weights do not belong together: download the folder again"
    return f"{folder} ({files}) does not hold the network of its config.json:{''.join(parts)}{remedy}"


def _read(
    stored: Mapping[names.Path, Stored],
    wanted: Mapping[names.Path, names.Shape],
    headers: list[Header],
    dtype: DTypeLike | None,
) -> Iterator[tuple[names.Path, np.ndarray]]:
    """The parameters in the order in which they lie in their files, each a fresh array in our axis order."""
    for header in headers:
        own = [path for path, record in stored.items() if record.file == header.path.name]
        own.sort(key=lambda path: header.tensors[stored[path].name].start)
        with open(header.path, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for path in own:
            name = stored[path].name
            array = _tensor(pages, header.tensors[name], path, wanted[path], dtype, f"{header.path}: {name}")
            if hasattr(mmap, "MADV_DONTNEED"):
                # Pages already read would count as this process's memory until somebody else needs it.
                pages.madvise(mmap.MADV_DONTNEED)
            yield path, array


def _tensor(
    pages: mmap.mmap, entry: Entry, path: names.Path, shape: names.Shape, dtype: DTypeLike | None, what: str
) -> np.ndarray:
    """One tensor, checked and copied out of the map."""
    own = DTYPES[entry.dtype]
    found = np.frombuffer(pages, own, (entry.stop - entry.start) // own.itemsize, entry.start)
    _check_finite(found, what)
    linear = entry.shape[:2] if len(shape) == 2 else entry.shape  # the VAE's [o, i, 1, 1]
    array = _aligned(shape, np.dtype(dtype or own))
    with np.errstate(over="ignore"):  # told as an error below
        np.copyto(array, names.from_file(path, found.reshape(linear)), casting="unsafe")
    if array.dtype != own:
        _check_finite(array.reshape(-1), f"{what}, cast to {array.dtype}")
    return array


def _aligned(shape: names.Shape, dtype: np.dtype) -> np.ndarray:
    """An empty array that starts on a cache line: XLA's CPU backend takes such a one without a copy."""
    count = math.prod(shape)
    room = np.empty(count * dtype.itemsize + 64, np.uint8)
    return np.frombuffer(room, dtype, count, -room.ctypes.data % 64).reshape(shape)


def _check_finite(flat: np.ndarray, what: str) -> None:
    for start in range(0, flat.size, _CHUNK):
        fine = np.isfinite(flat[start : start + _CHUNK])
        if not fine.all():
            bad = flat[start + int(np.argmin(fine))]
            raise CheckpointError(
                f"{what} holds {bad} (element {start + int(np.argmin(fine))}); its weights are broken"
            )


def _buffer(header: Header, name: str) -> np.ndarray:
    with safe_open(header.path, framework="np") as file:
        return file.get_tensor(name)
