"""From safetensors files to parameters, strictly, whatever the files' layout.

Names and shapes are settled from the files' headers first: every parameter has its place, every tensor its
parameter, every shape is right, or one error lists what is not. Only then are the weights read, one tensor at
a time from a memory map whose pages are given back at once, so that the peak is the parameters' own bytes and
one tensor more. Or they stay in the file (`in_the_file`): views of the map, which take no memory of their own.
A tensor that holds NaN or an infinity is refused: it would paint a black picture half an hour later.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from sdjax.core import tree
from sdjax.core.errors import CheckpointError, listing, nearest
from sdjax.weights import names
from sdjax.weights.files import Entry, Header
from sdjax.weights.names import DTYPES, READ_AS, READABLE, Place

_CHUNK = 1 << 20  # elements looked at in one go for NaN: the mask stays in cache


@dataclass(frozen=True)
class Found:
    """A parameter's place, and the tensor that is there."""

    place: Place
    header: Header
    entry: Entry

    @property
    def dtype(self) -> str:
        """What it is read as and would be saved in, as safetensors spells it."""
        return READ_AS.get(self.entry.dtype, self.entry.dtype)


@dataclass(frozen=True)
class ErrorContext:
    """How an error about a component begins and ends."""

    what: str
    remedy: str


def on_device(array: np.ndarray) -> jax.Array:
    """`array` on jax's default device, the transfer finished: one under way holds its host copy as well."""
    return jax.block_until_ready(jax.device_put(array))


def read_tensors(
    headers: Sequence[Header],
    expected: Mapping[str, Any],
    places: names.Places,
    blame: ErrorContext,
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = on_device,
) -> tuple[dict[str, Any], dict[tree.Path, Found]]:
    """A component's parameters, and where each was found.

    `headers` hold this component's tensors and no others; `places` says where each of the `expected` (a nested dict
    of `jax.ShapeDtypeStruct`) may lie. `dtype=None` keeps each tensor's own. Each array goes through `place` as soon
    as it is read, so that host and device never both hold the whole; `place=in_the_file` leaves it where it is.
    Raises CheckpointError.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in tree.flatten(expected).items()}
    found = _find(wanted, headers, places, blame)
    params = {path: place(array) for path, array in _read(found, wanted, headers, dtype, place is in_the_file)}
    return tree.unflatten({path: params[path] for path in wanted}), found


def in_the_file(array: np.ndarray) -> np.ndarray:
    """For `read_tensors`: a read-only view of the file, which takes no memory; of 8 and of 64 bits a copy."""
    return array


def cast_to_device(array: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """An array of the host in `dtype` on jax's default device; what leaves its range becomes infinite."""
    target = aligned(array.shape, np.dtype(dtype))
    with np.errstate(over="ignore"):
        names.copy(target, array)
    if (pages := pages_of(array)) is not None:
        pages.release()
    return on_device(target)


class Pages(mmap.mmap):
    """A file in memory, read-only, which can tell whether it is still what it was."""

    path: Path
    _file: int
    _stamp: tuple[int, int]

    def __new__(cls, path: Path) -> Pages:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            made = super().__new__(cls, file, 0, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(file)
            raise
        made.path, made._file, made._stamp = path, file, _stamp(file)
        weakref.finalize(made, os.close, file)
        return made

    def release(self) -> None:
        """Pages already read would count as this process's memory until somebody else needs it."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Raises CheckpointError where another process has written to the file since it was opened."""
        if _stamp(self._file) != self._stamp:
            raise CheckpointError(
                f"{self.path} has been written to since it was loaded, and parameters still lie in it: load it again"
            )


def pages_of(array: Any) -> Pages | None:
    """The file that a parameter still lies in, or None."""
    while isinstance(array, np.ndarray):
        array = array.base
    array = array.obj if isinstance(array, memoryview) else array
    return array if isinstance(array, Pages) else None


def _stamp(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def read_tensor(header: Header, name: str) -> np.ndarray:
    """One tensor of a file as it lies there."""
    entry = header.tensors[name]
    with open(header.path, "rb") as file:
        file.seek(entry.start)
        return np.frombuffer(file.read(entry.stop - entry.start), READABLE[entry.dtype]).reshape(entry.shape)


def _find(
    wanted: Mapping[tree.Path, tree.Shape], headers: Sequence[Header], places: names.Places, blame: ErrorContext
) -> dict[tree.Path, Found]:
    """Each parameter's tensor, or one CheckpointError that lists all that is wrong."""
    held = {name: header for header in headers for name in header.tensors if not names.is_buffer(name)}
    found: dict[tree.Path, Found] = {}
    faults: dict[str, list[str]] = {"missing": [], "duplicate": [], "of the wrong shape": [], "of the wrong dtype": []}
    unused = dict.fromkeys(held)
    for path, shape in wanted.items():
        known = places(path, shape)
        there = [Found(one, held[one.name], held[one.name].tensors[one.name]) for one in known if one.name in held]
        for one in there:
            unused.pop(one.place.name, None)
        if not there:
            faults["missing"].append(known[0].name)
            continue
        if len(there) > 1 and not _agree(there, path, shape):
            faults["duplicate"].append(", ".join(one.entry.name for one in there))
            continue
        found[path], entry = there[0], there[0].entry
        if entry.shape not in there[0].place.shapes:
            shapes = " or ".join(str(list(one)) for one in there[0].place.shapes)
            faults["of the wrong shape"].append(f"{entry.name}: expected {shapes}, found {list(entry.shape)}")
        if entry.dtype not in READABLE:
            dtypes = " or ".join(READABLE)
            faults["of the wrong dtype"].append(f"{entry.name}: expected {dtypes}, found {entry.dtype}")
    faults = {what: list(dict.fromkeys(lines)) for what, lines in faults.items()}  # three parameters may share a tensor
    faults["missing"][:8] = [name + nearest(name, unused) for name in faults["missing"][:8]]
    faults["unexpected"] = list(unused)
    if any(faults.values()):
        parts = [f"\n  {len(lines)} {what}:{listing(lines)}" for what, lines in faults.items() if lines]
        raise CheckpointError(f"{blame.what}:{''.join(parts)}\n  {blame.remedy}")
    return found


def _read(
    found: Mapping[tree.Path, Found],
    wanted: Mapping[tree.Path, tree.Shape],
    headers: Sequence[Header],
    dtype: DTypeLike | None,
    mapped: bool = False,
) -> Iterator[tuple[tree.Path, np.ndarray]]:
    """The parameters in the order in which they lie in their files, each in our axis order.

    A fresh array, or a view of the file where that is `mapped`.
    """
    for header in headers:
        own = [path for path, one in found.items() if one.header is header]
        own.sort(key=lambda path: found[path].entry.start)
        if not own:
            continue
        pages = Pages(header.path)
        for path in own:
            array = _tensor(pages, found[path], path, wanted[path], dtype, mapped)
            pages.release()
            yield path, array


def _agree(twice: Sequence[Found], path: tree.Path, shape: tree.Shape) -> bool:
    """Whether tensors that are one parameter by two names hold the same numbers; then either does."""
    if any(one.entry.shape not in one.place.shapes or one.entry.dtype not in READABLE for one in twice):
        return False
    arrays = [array for one in twice for _, array in _read({path: one}, {path: shape}, [one.header], np.float32)]
    return all(np.array_equal(arrays[0], array) for array in arrays[1:])


def _tensor(
    pages: Pages, found: Found, path: tree.Path, shape: tree.Shape, dtype: DTypeLike | None, mapped: bool
) -> np.ndarray:
    """One parameter, checked, and copied out of the map unless it is to stay there."""
    stored, own = READABLE[found.entry.dtype], DTYPES[found.dtype]
    what = f"{found.header.path}: {found.entry.name}"
    view = _view(pages, found, stored)
    flat = view.reshape(-1)
    check_finite(flat, what)
    if {len(shape), view.ndim} == {2, 4}:  # a 1x1 convolution for a linear layer, or the other way round
        view = view.reshape(view.shape[:2] if view.ndim == 4 else (*view.shape, 1, 1))
    view = view if found.place.as_ours else names.from_file(path, view)
    if mapped and stored == own:
        return view
    array = aligned(shape, np.dtype(dtype or own))
    with np.errstate(over="ignore"):  # told as an error below
        names.copy(array, view)
    if array.dtype != stored:
        check_finite(array.reshape(-1), f"{what}, cast to {array.dtype}")
    return array


def _view(pages: Pages, found: Found, stored: np.dtype) -> np.ndarray:
    """The parameter's numbers as they lie in the file: all of the tensor's, or a part of them."""
    entry, (part, parts) = found.entry, found.place.part or (0, 1)
    count = math.prod(entry.shape) // parts
    start = entry.start + part * count * stored.itemsize
    shape = (entry.shape[0] // parts, *entry.shape[1:]) if entry.shape else ()  # CLIP's logit_scale is a scalar
    return np.frombuffer(pages, stored, count, start).reshape(shape)


def aligned(shape: tree.Shape, dtype: np.dtype) -> np.ndarray:
    """An empty array that starts on a cache line: XLA's CPU backend takes such a one without a copy."""
    count = math.prod(shape)
    room = np.empty(count * dtype.itemsize + 64, np.uint8)
    return np.frombuffer(room, dtype, count, -room.ctypes.data % 64).reshape(shape)


def check_finite(flat: np.ndarray, what: str) -> None:
    """Raises CheckpointError for NaN and infinities: the numbers whose bits, but for the sign, are infinity's or more.

    Compared as integers, since NumPy looks at 16-bit floats one by one: 20 GB/s in place of 1.
    """
    if flat.dtype.name.endswith("fnuz"):  # no infinity, and their one NaN is where others have -0
        flat = flat.astype(np.float16)
    integers = np.dtype(f"u{flat.itemsize}")
    mask = integers.type(np.iinfo(integers).max >> 1)
    limit = int(np.array(np.inf).astype(flat.dtype).view(integers) & mask)  # NaN's where there is no infinity
    bits = flat.view(integers)
    for start in range(0, flat.size, _CHUNK):
        part = bits[start : start + _CHUNK] & mask
        if part.max() >= limit:
            bad = start + int(np.argmax(part >= limit))
            raise CheckpointError(f"{what} holds {flat[bad]} (element {bad}); its weights are broken")
