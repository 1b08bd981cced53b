"""Pictures in a folder, and in the folders in it, with captions as several programs keep them.

In the order in which they are looked for, a picture's captions are

    metadata.jsonl    in the folder of the picture or one above it, a line each: {"file_name": .., "text": ..}, where
                      text is one caption or a list of them (Hugging Face's imagefolder)
    cat.txt           beside cat.jpg, one caption a line; or cat.caption (kohya)
    10_sks dog/       the folder's own name: "sks dog", and each picture in it ten times a pass (DreamBooth, kohya)

Hidden files, and those that are no pictures by name, are passed over; pictures of formats that are not read are
rejects.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from sdjax.core.errors import shown
from sdjax.train.data.record import (
    LARGEST_CAPTION,
    UNREAD,
    Found,
    Record,
    Reject,
    is_picture,
    lines,
    read_file,
)

METADATA = "metadata.jsonl"
REPEATED = re.compile(r"([1-9]\d{0,2})_(.+)")  # more than 999 times would be a year
LARGEST_METADATA = 1 << 31  # bytes


def read_folder(folder: Path) -> Found:
    """What a folder holds. Raises ValueError for a metadata.jsonl that cannot be read, OSError."""
    names = sorted(_names(folder))
    pictures = [name for name in names if is_picture(name)]
    told, rejects = _metadata(folder, names)
    records = []
    for name in pictures:
        try:
            repeats, captions = _captions(folder, name, told)
            records.append(Record(name, partial(read_file, folder / name), captions, repeats))
        except (OSError, ValueError) as error:
            rejects.append(Reject(name, str(error)))
    rejects += [Reject(name, _unread(name)) for name in names if name.lower().endswith(UNREAD)]
    return Found(tuple(records), tuple(rejects))


def _unread(name: str) -> str:
    return f"{PurePosixPath(name).suffix} is not read; convert it to PNG or JPEG"


def _names(folder: Path) -> Iterator[str]:
    """The files, by their paths from the folder with `/`, hidden ones left out."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if not any(part.startswith((".", "__MACOSX")) for part in name.parts) and not path.is_dir():
            yield name.as_posix()


def _captions(folder: Path, name: str, told: Mapping[str, tuple[str, ...]]) -> tuple[int, tuple[str, ...]]:
    """(repeats, captions) of a picture. Raises OSError, ValueError."""
    parent = REPEATED.fullmatch(PurePosixPath(name).parent.name)
    repeats = int(parent[1]) if parent else 1
    if name in told:
        return repeats, told[name]
    for ending in (".txt", ".caption"):
        beside = (folder / name).with_suffix(ending)
        if beside.is_file() and (captions := lines(read_file(beside, LARGEST_CAPTION))):
            return repeats, captions
    return repeats, (parent[2],) if parent else ()


def _metadata(folder: Path, names: list[str]) -> tuple[dict[str, tuple[str, ...]], list[Reject]]:
    """Captions by a picture's name, of every metadata.jsonl; and rejects, which are named there and are not."""
    captions: dict[str, tuple[str, ...]] = {}
    rejects, known = [], set(names)
    for own in (one for one in names if PurePosixPath(one).name == METADATA):
        for number, line in _lines(folder / own):
            where = f"{folder / own}, line {number}"
            file, texts = _row(line, where)
            name = (PurePosixPath(own).parent / file).as_posix()
            if name not in known:  # also what leads out of the folder: it is never opened
                rejects.append(Reject(name, f"{where} names it, and the folder has no such file"))
            captions[name] = texts
    return captions, rejects


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines with something in them, each with its number from 1. Raises ValueError, OSError."""
    try:
        text = read_file(path, LARGEST_METADATA).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save it as such") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _row(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    file, text = (row.get(key) if isinstance(row, dict) else None for key in ("file_name", "text"))
    given = text if isinstance(text, list) else [text]
    texts = tuple(one.strip() for one in given if isinstance(one, str))
    if not isinstance(file, str) or not 0 < len(texts) == len(given):
        raise ValueError(f'{where} must be {{"file_name": "cat.png", "text": "a cat"}}, not {shown(line, 80)}')
    return file, texts
