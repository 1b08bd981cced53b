"""From a folder in the diffusers layout to parameters (see `tensors` for how they are read)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from safetensors import safe_open

from sdjax.config.components import COMPONENTS
from sdjax.weights import names
from sdjax.weights.checkpoint import Checkpoint
from sdjax.weights.files import Entry, Header, component_headers, read_json, read_text
from sdjax.weights.index import read_index, side_files
from sdjax.weights.links import home_of, within
from sdjax.weights.names import NARROW, WIDE, Layout, Stored
from sdjax.weights.spelling import without_prefix
from sdjax.weights.tensors import ErrorContext, Found, on_device, read_tensor, read_tensors

EIGHT_BITS = "stored in 8 bits: each number is read as the float16 that equals it, and would be saved as one"
SIXTY_FOUR_BITS = "stored in 64 bits, if only in part: each number is read as the nearest float32, and saved as one"


def open_folder(folder: str | os.PathLike[str], variant: str | None = None) -> Checkpoint:
    """A checkpoint in the diffusers layout: its index, configs and headers are checked, no weight is read.

    `variant` says which weights where there are several, as "fp16" for `*.fp16.safetensors`. Raises CheckpointError.
    """
    index = read_index(folder)
    folder, used = index.folder, [name for name in COMPONENTS if name in index.components]
    home = home_of(folder)
    configs = {name: read_json(within(folder / name / "config.json", home)) for name in used}
    read_json(within(folder / "scheduler" / "scheduler_config.json", home))
    opened = {name: component_headers(folder / name, variant, home) for name in used}

    def read(
        component: str,
        expected: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        place: Callable[[np.ndarray], Any] = on_device,
    ) -> tuple[dict[str, Any], Layout]:
        return _read_component(folder / component, *opened[component], expected, dtype, place)

    held = {name: [entry for header in opened[name][0] for entry in header.tensors.values()] for name in used}
    notes = [f"{name} is {what}" for name in used for what in read_otherwise(held[name])]
    if index.ignored:
        notes.append(f"{folder}: left alone, since no picture needs it: {', '.join(index.ignored)}")
    return Checkpoint(configs, side_files(index), read, tuple(notes))


def read_otherwise(entries: Iterable[Entry]) -> list[str]:
    """What is to be said of tensors that are read in another dtype than they are stored in."""
    dtypes = {entry.dtype for entry in entries}
    return [what for kind, what in ((NARROW, EIGHT_BITS), (WIDE, SIXTY_FOUR_BITS)) if dtypes & kind.keys()]


def read_component(
    folder: str | os.PathLike[str],
    expected: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = on_device,
    *,
    variant: str | None = None,
) -> tuple[dict[str, Any], Layout]:
    """A component's parameters, and the record of how they lay in their files.

    `expected` is a nested dict of `jax.ShapeDtypeStruct` (from `jax.eval_shape`); its shapes count, its
    dtypes do not. `dtype=None` keeps each tensor's own. Each array goes through `place` as soon as it is
    read, so that host and device never both hold the whole; `place=np.asarray` keeps all on the host. Raises
    CheckpointError.
    """
    folder = Path(folder)
    home = home_of(folder)
    within(folder / "config.json", home)
    return _read_component(folder, *component_headers(folder, variant, home), expected, dtype, place)


def _read_component(
    folder: Path,
    headers: list[Header],
    index: tuple[str, str] | None,
    expected: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = on_device,
) -> tuple[dict[str, Any], Layout]:
    config = read_text(folder / "config.json")
    plain = [without_prefix(header, expected) for header in headers]
    params, found = read_tensors(plain, expected, names.places, _blame(folder, headers), dtype, place)
    buffers = [(header, name) for header in plain for name in header.tensors if names.is_buffer(name)]
    kept = {(header.path.name, header.tensors[name].name): _buffer(header, name) for header, name in buffers}
    metadata = {header.path.name: header.metadata for header in headers}
    stored = {path: _stored(one) for path, one in found.items()}
    return params, Layout(stored, metadata, config, kept, index)


def _stored(found: Found) -> Stored:
    return Stored(found.entry.name, found.entry.shape, found.dtype, found.header.path.name)


def _blame(folder: Path, headers: list[Header]) -> ErrorContext:
    files = ", ".join(header.path.name for header in headers[:3]) + (", ..." if len(headers) > 3 else "")
    return ErrorContext(
        f"{folder} ({files}) does not hold the network of its config.json",
        "config.json and the weights do not belong together: download the folder again",
    )


def _buffer(header: Header, name: str) -> np.ndarray:
    """A tensor that is no parameter, as it lies in the file; of 8 bits as the float16 that parameters become."""
    if header.tensors[name].dtype in NARROW:
        return read_tensor(header, name).astype(np.float16)
    with safe_open(header.path, framework="np") as file:
        return file.get_tensor(header.tensors[name].name)
