"""Scan: every picture of a data set is looked at once before training: measured, decoded to its end, hashed.

What cannot be read, or is too small, is a reject with its reason. So nothing fails at step 40,000, and the order of the
pictures, which is counted in those that are good, never changes under way.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdjax.core.errors import listing
from sdjax.core.files import write
from sdjax.images.control_map import read_map
from sdjax.images.read import open_bytes, read_image, read_mask
from sdjax.train.data.progress import Progress, Report
from sdjax.train.data.record import Found, Record, Reject

LEAST = 32  # pixels of a side; smaller ones are icons, or what a download left
SLACK = 0.02  # by how much the ratio of a map's sides may differ from its picture's, as a part of it

Seen = tuple[int, int, int]  # height and width in pixels, and 1 where some of it is transparent
Known = dict[str, Seen]


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


def scan(found: Found, *, kept: Path | None = None, least: int = LEAST, report: Report | None = None) -> Dataset:
    """Looks at every picture.

    kept: a file of what good ones were seen to be, by the digests of their bytes: those need not be decoded again.
    least: of a side, in pixels. report: takes a line of progress every few seconds.

    Raises ValueError where no picture is good, OSError where `kept` cannot be written.
    """
    known, progress = _known(kept), Progress(len(found.records), report)
    items: list[Item] = []
    rejects = list(found.rejects)
    for done, (record, seen) in enumerate(_each(found.records, known), 1):
        if isinstance(seen, Item) and min(seen.height, seen.width) >= least:
            items.append(seen)
        elif isinstance(seen, Item):
            small = f"{seen.width} x {seen.height} is too small; a side must have {least} pixels"
            rejects.append(Reject(record.name, small))
        else:
            rejects.append(Reject(record.name, seen))
        if progress(done, f"pictures seen, {len(rejects)} rejects"):
            _keep(kept, known, items)
    if not items:
        raise ValueError(f"none of the pictures can be learnt from:{listing([': '.join(one) for one in rejects])}")
    _keep(kept, known, items)
    return Dataset(tuple(items), tuple(sorted(rejects)))


def _each(records: tuple[Record, ...], known: Known) -> Iterator[tuple[Record, Item | str]]:
    """Every record with what was seen, in order; some hundred at a time, so that few wait in memory."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), 256):
            some = records[start : start + 256]
            yield from zip(some, pool.map(lambda one: _seen(one, known), some), strict=True)


def _seen(record: Record, known: Known) -> Item | str:
    """The item of a record, or why there is none."""
    try:
        files = {"image": record.read()} | {kind: read() for kind, read in record.beside.items()}
        digests = {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()}
        size = known.get(_name(digests)) or _measured(files, record.name)
        return Item(record, *size[:2], digests, bool(size[2]))
    except (OSError, ValueError) as error:
        return str(error).removeprefix(record.name).lstrip(": ")


def _measured(files: Mapping[str, bytes], name: str) -> Seen:
    """What a picture is. Raises ValueError where it is not good, or what lies beside it."""
    image = open_bytes(files["image"], name)
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else np.array(255)
    if alpha.max() == 0:
        raise ValueError("all of it is transparent")
    read_image(image, name)  # modes whose white is not known are refused here
    for kind in sorted(files.keys() - {"image"}):
        _check_beside(kind, files[kind], image.size)
    return image.height, image.width, int(alpha.min() < 255)


def _check_beside(kind: str, data: bytes, size: tuple[int, int]) -> None:
    """Raises ValueError where what lies beside a picture does not fit it."""
    other = open_bytes(data, f"its {kind}")
    if abs(np.log(other.width / other.height) - np.log(size[0] / size[1])) > SLACK:
        raise ValueError(
            f"its {kind} is {other.width} x {other.height} and the picture {size[0]} x {size[1]}: another shape"
        )
    if kind == "map":
        read_map(other, "its map")
    if kind == "mask" and read_mask(other, "its mask").getextrema()[1] == 0:
        raise ValueError("its mask is black all over: nothing of it counts")


# What was seen before -----------


def _name(digests: Mapping[str, str]) -> str:
    return " ".join(f"{kind}:{digest}" for kind, digest in sorted(digests.items()))


def _known(kept: Path | None) -> Known:
    """What was kept; nothing where the file is not there or not whole, and then all is looked at."""
    try:
        found = json.loads(kept.read_bytes()) if kept else {}
        return {str(name): (int(high), int(wide), int(clear)) for name, (high, wide, clear) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(kept: Path | None, known: Known, items: Sequence[Item]) -> None:
    if kept:
        seen = {_name(one.digests): (one.height, one.width, int(one.transparent)) for one in items}
        write(json.dumps(known | seen).encode(), kept, "what the scan saw")
