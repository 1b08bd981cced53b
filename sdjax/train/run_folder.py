"""A run's folder: what the run was asked to be, and room for its state.

settings.json              what the run was asked to be
checkpoints/step_<n>       states, see `checkpoint`
damaged_<n>                a state that could not be read, put aside
snapshots/                 averages, see `averages`
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sdjax.core.files import write
from sdjax.train.checkpoint import CHECKPOINTS, first_line, saved_steps

SETTINGS = "settings.json"
PER_LEAF, BESIDE = 4096, 1 << 20  # bytes that a checkpoint takes beside its numbers, at most


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, unless the folder has steps that were made with the same.

    Raises ValueError where its steps were made with others.
    """
    path = folder / SETTINGS
    if path.exists() and saved_steps(folder / CHECKPOINTS):
        before, asked = settings_of(folder), json.loads(json.dumps(settings))
        different = sorted(k for k in before.keys() | asked.keys() if before.get(k) != asked.get(k))
        if different:
            what = f"a run with other settings ({', '.join(different)})"
            raise ValueError(f"{folder} holds {what}; choose another folder, or delete this one")
    elif jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write((json.dumps(settings, indent=2) + "\n").encode(), path, "the run")


def settings_of(folder: str | Path) -> dict[str, Any]:
    """What a run was asked to be.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings.json is damaged.
    """
    path = Path(folder).resolve() / SETTINGS
    if not path.exists():
        raise FileNotFoundError(f"{path.parent}: no run there; train first")
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__} in place of names and values")
        return settings
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}); choose another folder, or delete this one"
        ) from error


def check_room(folder: Path, state: Any) -> None:
    """Raises OSError where the disk has no room for another checkpoint, before one is begun."""
    needed = BESIDE + sum(leaf.nbytes + PER_LEAF for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"a checkpoint takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
        raise OSError(f"{folder}: {what}; what has been saved stays, free some space and start again")
