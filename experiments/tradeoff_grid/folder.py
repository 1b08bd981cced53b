"""The folder of results: what makes a killed run go on where it was, and keeps two experiments apart.

    settings.json                  what all cells share; another experiment's folder is refused
    cells/CELL/plan.npz            the matrix the cell was made with
    cells/CELL/FIRST-LAST.npz      one finished batch
    cells/CELL/again.npz           its seconds, measured again
    reference-SCALE/..             the reference of one guidance scale, laid out as a cell
    runs.jsonl                     one line for each run that computed anything

Every file is written under another name and then renamed, so that it is there whole or not at all.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sdjax
from sdjax.core import files

FORMAT = 1
SETTINGS = "settings.json"


def write(path: Path, data: bytes) -> None:
    """`data` in `path`, whole or not at all; its folder is made. Raises OSError with the path and the reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.whole(path, lambda part: part.write_bytes(data))
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror}); what is there stays, and the same command goes on"
        raise OSError(reason) from None


def append(path: Path, line: str) -> None:
    """One more line at the end of a file."""
    write(path, (path.read_bytes() if path.exists() else b"") + line.encode() + b"\n")


def open_folder(root: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder or takes it up again.

    Raises:
      ValueError: it holds other things, or the results of other settings; the difference is named.
      OSError: it cannot be written.
    """
    files.check_writable(root, "the results")
    path = root / SETTINGS
    here = {"format": FORMAT, **settings}
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise ValueError(f"{root} holds other files and no {SETTINGS} of this experiment; give another --out")
        write(path, json.dumps(here, indent=1).encode())
        return
    try:
        there = json.loads(path.read_bytes())
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give another --out") from None
    if names:
        told = "; ".join(_difference(name, there.get(name), here.get(name)) for name in names)
        raise ValueError(f"{root} holds the results of another experiment: {told}. Give another --out, or its settings")


def _difference(name: str, there: Any, here: Any) -> str:
    if isinstance(there, list) or isinstance(here, list):
        return f"other {name}"
    return f"{name} is {there!r} there and {here!r} here"


class Runs:
    """The finished batches of one cell, or of a reference: for picture i of n, whatever arrays were saved of it."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def claim(self, plan: sdjax.Plan, about: Mapping[str, Any]) -> None:
        """Notes the plan that the batches are made with, and what else the reports tell of it.

        Raises:
          ValueError: batches are there already that another matrix made.
        """
        path = self.folder / "plan.npz"
        mine = {"weights": plan.weights, "timesteps": plan.row_timesteps}
        if not path.exists():
            write(path, _packed({**mine, "about": np.array(json.dumps(about))}))
            return
        theirs = _unpacked(path, *mine)
        if any(theirs[k].shape != v.shape or not np.allclose(theirs[k], v, 1e-6, 1e-9) for k, v in mine.items()):
            raise ValueError(
                f"{self.folder} was made when {plan.sampler} was another matrix: the sampler or the schedule has "
                "changed since. Delete that folder to make it anew, or give another --out"
            )

    def about(self) -> dict[str, Any] | None:
        """What `claim` was told; None where it never was."""
        path = self.folder / "plan.npz"
        return json.loads(str(_unpacked(path, "about")["about"])) if path.exists() else None

    def missing(self) -> np.ndarray:
        """int [m], the pictures that no batch holds yet."""
        held = [_unpacked(path, "index")["index"] for path in self._paths()]
        return np.setdiff1d(np.arange(self.count), np.concatenate(held) if held else [])

    def save(self, index: np.ndarray, **arrays: np.ndarray) -> None:
        """One finished batch of pictures `index` [b]."""
        write(self.folder / f"{index[0]:05d}-{index[-1]:05d}.npz", _packed({"index": index, **arrays}))

    def save_seconds(self, seconds: float) -> None:
        """Another measurement of the seconds a picture takes, in place of the one before."""
        write(self.folder / "again.npz", _packed({"seconds": np.asarray(seconds)}))

    def seconds(self) -> list[float]:
        """Of a picture: those measured again, else those of every batch."""
        again = self.folder / "again.npz"
        paths = [again] if again.exists() else self._paths()
        return [float(_unpacked(path, "seconds")["seconds"]) for path in paths]

    def by_picture(self, name: str) -> dict[int, np.ndarray]:
        """The entries of the array `name` by picture, in the pictures' order; those that were kept."""
        found: dict[int, np.ndarray] = {}
        for path in self._paths():
            batch = _unpacked(path, "index", name)
            found.update(zip(batch["index"].tolist(), batch[name], strict=False))
        return dict(sorted(found.items()))

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"))


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)  # type: ignore[arg-type]
    return held.getvalue()


def _unpacked(path: Path, *names: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as found:
            return {name: found[name] for name in names}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the same command makes it anew") from None
