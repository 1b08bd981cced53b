"""A folder in which thousands of pictures are made, by several processes and in several runs.

    begun.json          what was asked: the settings of all pictures, and a line for each
    00000.png ..        the pictures, by number. A picture's file is the only record that it has been made
    manifest.jsonl      {"index", "prompt", "file", "settings"} for each picture there is, made from the files
    .claims             while processes are at work: who makes what (see _claims.py)

Everything is written under another name and then given its own, so that a file is whole or is not there, whenever the
process was killed. A picture is never written over one that is there.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

import sdjax
from experiments import _files
from experiments._claims import Claims
from experiments._prompts import Line
from sdjax.core.files import write
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.spacing import SCHEDULES
from sdjax.images.pixels import encoded
from sdjax.request.arguments.arguments import DECLARED

END = b"\0\0\0\0IEND\xaeB`\x82"  # of every PNG
LARGEST = 1 << 30  # bytes of begun.json; the settings and a file of prompts take less


@dataclass(frozen=True)
class Record:
    """The folder. settings: of all pictures. lines: of each."""

    folder: Path
    settings: Mapping[str, Any]
    lines: Sequence[Line]

    @cached_property
    def asked(self) -> dict[str, Any]:
        """As begun.json holds it."""
        return {"settings": dict(self.settings), "lines": [dict(line) for line in self.lines]}

    @cached_property
    def _written(self) -> bytes:
        return json.dumps(self.asked, indent=1).encode()

    def begin(self, claims: Claims) -> None:
        """Writes down what is asked, or compares it. Raises ValueError naming a difference, OSError.

        Where nobody is at work, lines whose pictures are missing may be others than they were, and more may follow.
        """
        with claims.lock():
            if not self._agrees():
                self._check_change(self._read(), claims)
                self._write()
            claims.join()
            if not claims.others():
                claims.tidy()
                for _ in self._entries():  # pictures that are none of ours are named before others are made
                    pass

    def path(self, number: int) -> Path:
        """Where picture `number` is, or will be."""
        return self.folder / f"{number:05d}.png"

    def missing(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Those of `numbers`, or of all, that have not been made."""
        there = set(os.listdir(self.folder))
        numbers = range(len(self.lines)) if numbers is None else numbers
        return [number for number in numbers if self.path(number).name not in there]

    def keep(self, numbers: Sequence[int], images: Sequence[Image.Image]) -> int:
        """Writes pictures; how many of them were not there yet. Raises ValueError where others are asked for by now."""
        if not self._agrees():
            if self._read() is None:
                raise ValueError(
                    f"{self._path} is gone: the folder was removed, renamed or emptied while pictures were being made "
                    "for it; what was made last is dropped"
                )
            raise ValueError(
                f"{self.folder} was begun anew with other settings while this process stood still; it ends, and what "
                "it made last is dropped"
            )
        with _files.writing(self.folder):
            return sum(self._keep(number, image) for number, image in zip(numbers, images, strict=True))

    def _keep(self, number: int, image: Image.Image) -> bool:
        return _files.publish(encoded(image), self.path(number))

    def write_manifest(self) -> Path:
        """Makes the manifest of the pictures that are there. Raises ValueError for one that is none of ours."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self._entries())
        return write(lines.encode(), self.folder / "manifest.jsonl")

    def _entries(self) -> Iterator[dict[str, Any]]:
        missing = set(self.missing())
        for number, line in enumerate(self.lines):
            if number not in missing:
                settings = self._settings(number)
                name = self.path(number).name
                yield {"index": number, "prompt": line["prompt"], "file": name, "settings": settings}

    def _settings(self, number: int) -> dict[str, Any]:
        """What a picture says of itself. Raises ValueError where that is nothing, or not what is asked of it."""
        path, remedy = self.path(number), "delete it, and the same command makes it anew"
        try:
            settings = sdjax.read_settings(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{error}; {remedy}") from None
        if not _ends(path):
            raise ValueError(f"{path} is cut off; {remedy}")
        asked = {**self.settings, **self.lines[number], "first_image": number}
        for name in (one for one in DECLARED if one in asked):
            if not _same(name, asked[name], settings.get(name)):
                raise ValueError(
                    f"{path} is another picture: its {name} is {_short(settings.get(name))} where "
                    f"{_short(asked[name])} is asked for; {remedy}"
                )
        return settings

    # ------------------------------------------------------------------ begun.json

    @property
    def _path(self) -> Path:
        return self.folder / "begun.json"

    def _read(self) -> bytes | None:
        """begun.json; None where there is none. Raises ValueError, OSError."""
        try:
            return _files.read(self._path, str(self._path), LARGEST)
        except FileNotFoundError:
            return None

    def _agrees(self) -> bool:
        begun = self._read()
        return begun == self._written or (begun is not None and _parsed(begun) == self.asked)

    def _write(self) -> None:
        """Raises ValueError where another process was first, whatever became of the lock."""
        if self._path.exists():
            write(self._written, self._path)
        elif not _files.publish(self._written, self._path) and not self._agrees():
            raise ValueError(f"{self.folder} is begun by another run in this moment; choose another --out")

    def _check_change(self, data: bytes | None, claims: Claims) -> None:
        """Raises ValueError where this must not take the place of what was begun."""
        if data is None:
            if any(self.folder.glob("*.png")):
                raise ValueError(f"{self.folder} holds pictures that this program did not make; choose another --out")
            return
        begun = _parsed(data)
        if not _is_ours(begun):
            raise ValueError(f"{self._path} is not what this program writes; choose another --out, or delete it")
        every = range(max(len(begun["lines"]), len(self.lines)))
        made = sorted(set(every) - set(self.missing(every)))
        if made and (binding := _difference(begun, self.asked, made)):
            raise ValueError(f"{self.folder} was begun with other settings: {binding}; choose another --out")
        if (other := claims.at_work()) is not None:
            raise ValueError(
                f"{self.folder} is being filled by {other}, which was started with other settings: "
                f"{_difference(begun, self.asked, every)}; choose another --out, or stop that one first"
            )


def _ends(path: Path) -> bool:
    """Whether a PNG's last chunk is there; what was cut off may well say its settings."""
    with open(path, "rb") as file:
        file.seek(-min(len(END), os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read() == END


def _parsed(data: bytes) -> Any:
    """JSON's value; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_ours(begun: Any) -> bool:
    if not isinstance(begun, dict) or not isinstance(begun.get("settings"), dict):
        return False
    lines = begun.get("lines")
    return isinstance(lines, list) and all(isinstance(line, dict) for line in lines)


def _difference(before: Any, now: Any, numbers: Iterable[int]) -> str:
    """The first difference in words, in the settings or in these pictures' lines; empty where there is none."""
    old, new = before["settings"], now["settings"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return f"--{name} was {old.get(name)!r} and is {new.get(name)!r}"
    for number in numbers:
        was, line = (one["lines"][number] if number < len(one["lines"]) else None for one in (before, now))
        if was != line:
            return f"picture {number} was {_short(was)} and is {_short(line) if line else 'no longer asked for'}"
    return ""


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


def _same_text(asked: Any, found: Any) -> bool:
    return (asked or "") == (found or "")


def _same_number(asked: Any, found: Any) -> bool:
    return asked is None or (isinstance(found, int | float) and math.isclose(asked, found, rel_tol=1e-6))


def _same_name(known: Collection[str], asked: Any, found: Any) -> bool:
    """Of names that settings hold as they were given; others may be words of another program for the same."""
    return asked not in known or asked == found


KNOWN = {"sampler": SAMPLERS, "schedule": SCHEDULES}


def _same(name: str, asked: Any, found: Any) -> bool:
    """Whether a picture's setting is what is asked of it, as far as that is said."""
    if name in KNOWN:
        return _same_name(KNOWN[name], asked, found)
    return (_same_text if str in DECLARED[name].types else _same_number)(asked, found)
