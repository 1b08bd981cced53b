"""Record: a picture of a data set that nobody has looked at yet: its name, its captions, and how its bytes are read.

A source (`folder`, `shards`, `parquet`) lists records sorted by name, and beside them what it cannot take, each with
the reason. Nothing is passed over in silence, for the order of training is counted in records.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from sdjax.core.files import irregular

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")  # also pictures
LARGEST = 1 << 28  # bytes of one picture's file; 89 million pixels, the most that are read, as PNG are about as many
LARGEST_CAPTION = 1 << 20  # bytes of one caption's file

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Record:
    """A picture before it is read.

    Attributes:
      name: of the picture in its source, no other's.
      read: gives the bytes of its file. Raises OSError and ValueError.
      captions: one or several, of which a step takes one.
      repeats: how often it comes in a pass over the data.
      beside: pictures that belong to it, by what they are: "map", what a ControlNet is shown; "mask", white where the
        error counts; "rejected", the one that is liked less.
    """

    name: str
    read: Read = field(repr=False, compare=False)
    captions: tuple[str, ...] = ()
    repeats: int = 1
    beside: Mapping[str, Read] = field(default_factory=dict, repr=False, compare=False)


class Reject(NamedTuple):
    """A picture that is not taken, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a source holds; the records sorted by name."""

    records: tuple[Record, ...]
    rejects: tuple[Reject, ...] = ()


def read_file(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises OSError, and ValueError for a pipe or one that is too large."""
    if what := irregular(path):
        raise ValueError(f"{path} is {what}")
    if (size := os.path.getsize(path)) > largest:
        raise ValueError(f"{path} has {size:,} bytes, more than the {largest:,} that are read")
    return Path(path).read_bytes()


def is_picture(name: str) -> bool:
    """Whether a file's name ends as those of pictures that are read."""
    return name.lower().endswith(ENDINGS)


def lines(data: bytes) -> tuple[str, ...]:
    """The captions in a text file, one a line. Raises ValueError where it is no UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("its caption is not UTF-8; save it as such") from None
    return tuple(line for one in text.splitlines() if (line := one.strip()))


def stem(name: str) -> str:
    """A picture's name without its ending."""
    return name.rpartition(".")[0] if is_picture(name) else name


def joined(found: Found, kind: str, others: Found) -> Found:
    """The records, each with the picture of the same name (endings aside) in `others` beside it as `kind`.

    A record without one becomes a reject. Raises ValueError where none has one, and for two of one name.
    """
    known: dict[str, Record] = {}
    for one in others.records:
        if stem(one.name) in known:
            raise ValueError(f"{one.name} and {known[stem(one.name)].name} are both the {kind} of one picture")
        known[stem(one.name)] = one
    pairs = [(one, known.get(stem(one.name))) for one in found.records]
    taken = tuple(replace(one, beside={**one.beside, kind: other.read}) for one, other in pairs if other)
    if found.records and not taken:
        example = stem(found.records[0].name)
        raise ValueError(f"no picture has a {kind}: they are found by the same name, as {example}.png for {example}")
    missing = tuple(Reject(one.name, f"it has no {kind} of the same name") for one, other in pairs if not other)
    return Found(taken, found.rejects + missing)
