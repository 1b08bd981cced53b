"""Scan: every picture of a data set is looked at once before training: measured, decoded to its end, hashed.

What cannot be read, or is too small, is a reject with its reason. So nothing fails at step 40,000, and the order of the
pictures, which is counted in those that are good, never changes under way.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdjax.core.errors import listing
from sdjax.core.files import write
from sdjax.images.control_map import read_map
from sdjax.images.read import open_bytes, read_image, read_mask
from sdjax.train.data.record import Found, Record, Reject

LEAST = 32  # pixels of a side; smaller ones are icons, or what a download left
SLACK = 0.02  # by how much the ratio of a map's sides may differ from its picture's, as a part of it
SECONDS = 10.0  # between two lines of progress


@dataclass(frozen=True)
class Item:
    """A picture that can be read.

    Attributes:
      height, width: of the file in pixels, upright.
      digests: sha256, in hex, of the bytes of its file ("image") and of those beside it.
      transparent: whether some of it is.
    """

    record: Record
    height: int
    width: int
    digests: Mapping[str, str]
    transparent: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """The pictures that are good, sorted by name, and those that are not."""

    items: tuple[Item, ...]
    rejects: tuple[Reject, ...] = ()

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What of the data belongs to a run's settings: how many there are, and a sha256 of all that is learnt from."""
        rows = [
            [one.record.name, sorted(one.digests.items()), list(one.record.captions), one.record.repeats]
            for one in self.items
        ]
        return {"pictures": len(rows), "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}

    def write_rejects(self, path: Path) -> None:
        """One line for each picture that is not taken, with a tab before its reason. Raises OSError."""
        text = "".join(f"{name}\t{' '.join(reason.split())}\n" for name, reason in self.rejects)
        write(text.encode("utf-8", "backslashreplace"), path, "the list of rejects")

    def __repr__(self) -> str:
        return f"Dataset({len(self.items)} pictures, {len(self.rejects)} rejects)"


def scan(
    found: Found, *, least: int = LEAST, report: Callable[[str], None] | None = None, threads: int | None = None
) -> Dataset:
    """Looks at every picture.

    least: of a side, in pixels. report: takes a line of progress every few seconds.

    Raises ValueError where no picture is good.
    """
    items: list[Item] = []
    rejects = list(found.rejects)
    begun = told = time.monotonic()
    for done, (record, seen) in enumerate(_each(found.records, least, threads), 1):
        if isinstance(seen, Item):
            items.append(seen)
        else:
            rejects.append(Reject(record.name, seen))
        now = time.monotonic()
        if report and now - told > SECONDS:
            left = (now - begun) / done * (len(found.records) - done) / 60
            report(f"{done} of {len(found.records)} pictures seen, {len(rejects)} rejects, {left:.1f} min left")
            told = now
    if not items:
        raise ValueError(f"none of the pictures can be learnt from:{listing([': '.join(one) for one in rejects])}")
    return Dataset(tuple(items), tuple(sorted(rejects)))


def _each(records: tuple[Record, ...], least: int, threads: int | None) -> Iterator[tuple[Record, Item | str]]:
    """Every record with what was seen, in order; some hundred at a time, so that few wait in memory."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(records), 256):
            some = records[start : start + 256]
            yield from zip(some, pool.map(lambda one: _seen(one, least), some), strict=True)


def _seen(record: Record, least: int) -> Item | str:
    """The item of a record, or why there is none."""
    try:
        data = record.read()
        image = open_bytes(data, record.name)
        if min(image.size) < least:
            return f"{image.width} x {image.height} is too small; a side must have {least} pixels"
        alpha = image.convert("RGBA").getchannel("A").getextrema() if image.has_transparency_data else (255, 255)
        if alpha[1] == 0:
            return "all of it is transparent"
        read_image(image, record.name)  # modes whose white is not known are refused here
        digests = {"image": hashlib.sha256(data).hexdigest()}
        for kind, read in record.beside.items():
            digests[kind] = _beside(kind, read(), record.name, image.size)
        return Item(record, image.height, image.width, digests, alpha[0] < 255)
    except (OSError, ValueError) as error:
        return str(error).removeprefix(record.name).lstrip(": ")


def _beside(kind: str, data: bytes, name: str, size: tuple[int, int]) -> str:
    """The sha256 of what lies beside a picture. Raises ValueError where it does not fit."""
    other = open_bytes(data, f"its {kind}")
    if abs(np.log(other.width / other.height) - np.log(size[0] / size[1])) > SLACK:
        raise ValueError(
            f"its {kind} is {other.width} x {other.height} and the picture {size[0]} x {size[1]}: another shape"
        )
    if kind == "map":
        read_map(other, "its map")
    if kind == "mask" and read_mask(other, "its mask").getextrema()[1] == 0:
        raise ValueError("its mask is black all over: nothing of it counts")
    return hashlib.sha256(data).hexdigest()
