"""A folder in which thousands of pictures are made, by several processes and in several runs.

    begun.json          what was asked: the settings of all pictures, and a line for each
    00000.png ..        the pictures, by number. A picture's file is the only record that it has been made
    manifest.jsonl      {"index", "prompt", "file", "settings"} for each picture there is, made from the files

Everything is written under another name and then given its own, so that a file is whole or is not there, whenever the
process was killed.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdjax import picture

Line = Mapping[str, Any]  # what is asked of one picture: its prompt, and arguments of its own


@dataclass(frozen=True)
class Record:
    """The folder. settings: of all pictures. lines: of each."""

    folder: Path
    settings: Mapping[str, Any]
    lines: Sequence[Line]

    def begin(self) -> None:
        """Writes down what is asked, or compares it. Raises ValueError naming a difference, OSError."""
        picture.check_writable(self.folder)
        asked, path = {"settings": dict(self.settings), "lines": list(self.lines)}, self.folder / "begun.json"
        if not any(self.folder.glob("*.png")):  # what was asked and came to nothing binds nobody
            picture.write(json.dumps(asked, indent=1).encode(), path)
            return
        try:
            begun = json.loads(path.read_bytes())
            difference = _difference(begun["settings"], asked["settings"], begun["lines"], asked["lines"])
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} holds pictures that this program did not make; choose another --out"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path} is not what this program writes; choose another --out") from None
        if difference:
            raise ValueError(f"{self.folder} was begun with other settings: {difference}; choose another --out")

    def sweep(self) -> None:
        """Removes what killed processes left half-written; for when no other process is at work."""
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def path(self, number: int) -> Path:
        """Where picture `number` is, or will be."""
        return self.folder / f"{number:05d}.png"

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those that have not been made."""
        there = {path.name for path in self.folder.glob("*.png")}
        return [number for number in numbers if self.path(number).name not in there]

    def keep(self, number: int, image: Image.Image) -> None:
        """Writes a picture. Raises OSError."""
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        picture.write(encoded.getbuffer(), self.path(number))

    def write_manifest(self) -> Path:
        """Makes the manifest of the pictures that are there. Raises ValueError for one that is none of ours."""
        lines = "".join(json.dumps(entry) + "\n" for entry in self._entries())
        return picture.write(lines.encode(), self.folder / "manifest.jsonl")

    def _entries(self) -> Iterator[dict[str, Any]]:
        missing = set(self.missing(range(len(self.lines))))
        for number, line in enumerate(self.lines):
            if number not in missing:
                path = self.path(number)
                settings = picture.read_settings(path)
                yield {"index": number, "prompt": line["prompt"], "file": path.name, "settings": settings}


def _difference(before: Any, now: Any, lines_before: Any, lines_now: Any) -> str:
    """The first difference in words; empty where there is none."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"--{name} was {before.get(name)!r} and is {now.get(name)!r}"
    for number, (old, new) in enumerate(zip(lines_before, lines_now, strict=False)):
        if old != new:
            return f"picture {number} was {json.dumps(old)[:80]} and is {json.dumps(new)[:80]}"
    if len(lines_before) != len(lines_now):
        return f"--prompts_file had {len(lines_before)} prompts and has {len(lines_now)}"
    return ""
