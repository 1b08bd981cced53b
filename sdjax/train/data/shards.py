"""Webdataset's shards: tar files in which files of one name belong together, `0001.jpg`, `0001.txt`, `0001.json`.

A tar file is a row of members, a header of 512 bytes before each. The headers are read once; from then on a picture is
(shard, offset, size), any of them as quick to read as any other, and nothing is ever unpacked onto the disk. So a
member's name, whatever it is (`../../etc`), is only a name. Links, devices and sparse members are rejects. Of a JSON
member the caption is what stands under "caption" or "text".

Format: https://github.com/webdataset/webdataset#the-webdataset-format; a name ends at its first dot.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdjax.core.errors import shown
from sdjax.train.data.record import ENDINGS, LARGEST, LARGEST_CAPTION, UNREAD, Found, Record, Reject, lines

MOST = 1 << 20  # members of one shard; tarfile keeps them all, half a kilobyte each
CAPTIONS = (".txt", ".caption")


class Member(NamedTuple):
    """Where the bytes of one file of a shard are."""

    shard: Path
    offset: int
    size: int

    def read(self, largest: int = LARGEST) -> bytes:
        """The bytes. Raises OSError, and ValueError where there are too many or too few."""
        if self.size > largest:
            raise ValueError(f"it has {self.size:,} bytes, more than the {largest:,} that are read")
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.shard} ends in the middle of it")
        return data


def read_shards(paths: list[Path]) -> Found:
    """What shards hold. Raises ValueError for a file that is no tar file, OSError."""
    found = [_shard(path) for path in sorted(paths, key=lambda path: path.name)]
    records = tuple(record for one in found for record in one.records)
    return Found(records, tuple(reject for one in found for reject in one.rejects))


def _shard(path: Path) -> Found:
    samples, rejects = _members(path)
    records = []
    for key, own in sorted(samples.items()):
        pictures = [ending for ending in ENDINGS if ending in own]
        name = f"{path.name}/{key}{pictures[0] if pictures else ''}"
        try:
            if pictures:
                records.append(Record(name, partial(own[pictures[0]].read), _captions(own)))
            elif other := next((ending for ending in own if ending.endswith(ENDINGS + UNREAD)), None):
                rejects.append(Reject(name + other, "the picture must be PNG, JPEG .. and its name have one dot"))
        except (OSError, ValueError) as error:
            rejects.append(Reject(name, str(error)))
    return Found(tuple(records), tuple(rejects))


def _members(path: Path) -> tuple[dict[str, dict[str, Member]], list[Reject]]:
    """The members of a shard by name and ending."""
    samples: dict[str, dict[str, Member]] = {}
    rejects: list[Reject] = []
    for one in _headers(path):
        key, ending = _named(one.name)
        if one.isdir() or os.path.basename(key).startswith("."):
            continue
        if not one.isreg() or one.issparse():
            rejects.append(Reject(f"{path.name}/{shown(one.name)}", "a link, a device or sparse: no file"))
        elif ending in samples.setdefault(key, {}):
            rejects.append(Reject(f"{path.name}/{shown(one.name)}", "a second one of this name"))
        else:
            samples[key][ending] = Member(path, one.offset_data, one.size)
    return samples, rejects


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """The header of every member. Raises ValueError where one is damaged, OSError."""
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:  # not compressed: in such a one nothing can be found by its offset
            for number, one in enumerate(tar):
                if number >= MOST:
                    raise tarfile.ReadError(f"more than {MOST:,} members")
                if not 0 <= one.size <= end - one.offset_data:  # a negative one leads tarfile round and round
                    raise tarfile.ReadError(f"{shown(one.name)} has {one.size} bytes")
                yield one
            with open(path, "rb") as file:
                file.seek(tar.offset)  # where tarfile stopped, which takes a damaged header for the end
                if any(file.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError(f"a damaged header at byte {tar.offset:,}")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read as a tar file ({error}); one that is compressed has to be unpacked to .tar first"
        ) from None


def _named(name: str) -> tuple[str, str]:
    """(the name up to the first dot of its last part, the rest in small letters)."""
    folder, slash, base = name.rpartition("/")
    key, dot, ending = base.partition(".") if not base.startswith(".") else (base, "", "")
    return folder + slash + key, (dot + ending).lower()


def _captions(own: dict[str, Member]) -> tuple[str, ...]:
    """The captions of a sample. Raises OSError, ValueError."""
    for ending in CAPTIONS:
        if ending in own and (captions := lines(own[ending].read(LARGEST_CAPTION))):
            return captions
    if ".json" not in own:
        return ()
    try:
        told = json.loads(own[".json"].read(LARGEST_CAPTION))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json cannot be read ({error})") from None
    texts = [told.get(key) for key in ("caption", "text")] if isinstance(told, dict) else []
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())[:1]
