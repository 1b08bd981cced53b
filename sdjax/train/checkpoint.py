"""Checkpoints: the whole state of a run, in folders `step_<number>` that are there whole or not at all.

    step_120/state     orbax's: every leaf under its path in the state, "params/layer/kernel"
    step_120/about     JSON: the step, what the run was asked to be, versions, metrics, and of every leaf its shape, its
                       dtype and a fingerprint; and the SHA-256 of all this

A leaf is known by its path, so that one optimiser's state is never taken for another's of the same shapes. Orbax has no
checksum of what its files hold. Read back, a leaf must have the fingerprint that it was saved with, see `fingerprints`;
that does not ask over how many devices it lies, and so a state may be read back over others.
"""

import gc
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sdjax.core.errors import closest
from sdjax.core.version import VERSION
from sdjax.train.fingerprints import fingerprints

CHECKPOINTS = "checkpoints"  # of a run's folder
STEP = "step_"
SHA256 = "sha256"
FULL = ("No space left", "Disk quota exceeded")  # of what is raised where a disk is full


class Damaged(ValueError):
    """A checkpoint whose files cannot be read, or hold other numbers than were saved."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the union of these.

    Attributes:
      newest: so many of the newest. every: those after a multiple of so many steps; 0: none for that.
      best: so many of those with the smallest `metric`, among the metrics that they were saved with.
    """

    newest: int = 2
    every: int = 0
    best: int = 0
    metric: str = "validation_loss"

    def __post_init__(self) -> None:
        if self.newest < 1 or self.every < 0 or self.best < 0:
            raise ValueError(f"at least the newest checkpoint stays, and no fewer than none of the others: {self}")

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps that stay, of those saved with these metrics."""
        steps = sorted(metrics)
        told = [n for n in steps if self.metric in metrics[n]]
        best = sorted(told, key=lambda n: (metrics[n][self.metric], -n))[: self.best]
        return {*steps[-self.newest :], *best, *(n for n in steps if self.every and n % self.every == 0)}


class Checkpoints:
    """The checkpoints of a run's folder; `opened` gives one."""

    def __init__(self, folder: Path, retention: Retention, writer: ocp.AsyncCheckpointer) -> None:
        self.folder, self.retention, self._writer = folder, retention, writer

    def newest(self) -> int | None:
        """The newest step, of which nothing is known yet but its name."""
        return max(saved_steps(self.folder), default=None)

    def save(self, step: int, state: Any, about: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Begins to write a state; what it would overwrite may be overwritten when this returns."""
        leaves = flat(state)
        told = dict(about) | {"step": step, "metrics": dict(metrics), "versions": versions()}
        told["leaves"] = _described(leaves)
        told = {"told": told, SHA256: _digest(told)}
        self.wait()
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(told))
        self._writer.save(self._path(step), args=args, force=True)

    def wait(self) -> None:
        """Waits for what is being written, and then takes away what is not to stay. Raises what writing did."""
        self._writer.wait_until_finished()
        metrics = {n: _metrics(self._path(n)) for n in saved_steps(self.folder)}
        if jax.process_index() == 0:
            for n in metrics.keys() - self.retention.kept(metrics):
                shutil.rmtree(self._path(n))

    def about(self, step: int) -> dict[str, Any]:
        """What stands beside a state. Raises Damaged."""
        return _about(self._path(step))

    def read(self, step: int, like: Any, above: str = "") -> Any:
        """A state, or of one what stands under the path `above`, shaped and laid out like `like`.

        Raises Damaged; ValueError where what was saved has other leaves than `like`.
        """
        wanted = {f"{above}{name}": leaf for name, leaf in flat(like).items()}
        told = {name: one for name, one in self.about(step)["leaves"].items() if name.startswith(above)}
        _check_same(self._path(step), told, wanted)
        found = _restored(self._path(step), wanted)
        for name, mark in fingerprints(found).items():
            if mark != told[name]["fingerprint"]:
                raise Damaged(f"{self._path(step)}: {name} is not what was saved: its fingerprint is another")
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def put_aside(self, step: int) -> Path:
        """Moves a checkpoint to `damaged_<step>` in the run's folder, where it is in nobody's way."""
        aside = _free(self.folder.parent / f"damaged_{step}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("put aside")
        if jax.process_index() == 0:
            self._path(step).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("put aside, done")
        return aside

    def _path(self, step: int) -> Path:
        return self.folder / f"{STEP}{step}"


@contextmanager
def opened(folder: Path, retention: Retention | None = None) -> Iterator[Checkpoints]:
    """The checkpoints of a run's folder, all written in the end; a full disk becomes an OSError of ours."""
    with _once():
        try:
            handler = ocp.CompositeCheckpointHandler("state", "about")
            with ocp.AsyncCheckpointer(handler) as writer:
                checkpoints = Checkpoints(folder / CHECKPOINTS, retention or Retention(), writer)
                yield checkpoints
                checkpoints.wait()
        except Exception as error:  # an OSError, or tensorstore's ValueError around one, perhaps from a thread of orbax
            if not _full(str(error)):
                raise
            gc.collect()  # orbax's tasks tell of what nobody asked them for when they are collected: here
            raise OSError(
                f"{folder}: the disk is full; what has been saved stays, free some space and start again"
            ) from error


def _full(text: str) -> bool:
    return any(sign in text for sign in FULL)


@contextmanager
def _once() -> Iterator[None]:
    """Within it a full disk is told by what is raised, not by each of orbax's threads and tasks, with tracebacks."""

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and _full(str(record.exc_info[1])))

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for one in loggers:
        one.addFilter(keep)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(keep)


def _restored(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Some of a state's leaves by their paths. Raises Damaged."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # of what lies on no device yet
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in wanted.items()
    }
    layout = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=layout, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = dict(reader.restore(path / "state", args=args))
    except Exception as error:  # orbax and tensorstore raise whatever their layers do
        raise Damaged(f"{path}: its state cannot be read ({first_line(error)})") from error
    for name, leaf in found.items():
        if not isinstance(leaf, jax.Array):  # what orbax gives back where it finds nothing
            raise Damaged(f"{path}: its state lacks {name}")
    return found


def saved_steps(folder: Path) -> list[int]:
    """The steps after which there is a checkpoint; another folder, even one of digits alone, is none of them."""
    names = [path.name.removeprefix(STEP) for path in folder.glob(f"{STEP}*")]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))


def flat(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths, joined by slashes."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    found = dict(named)
    if len(found) != len(named):
        raise ValueError("two leaves of the state have the same path; a name in it holds a slash")
    return found


def versions() -> dict[str, str]:
    """What a state was made by."""
    return {"sdjax": VERSION, "jax": jax.__version__, "numpy": np.__version__, "orbax": ocp.__version__}


def first_line(error: BaseException) -> str:
    """What an exception says, in a line."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _described(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    marks = fingerprints(leaves)
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "fingerprint": marks[name]}
        for name, leaf in leaves.items()
    }


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _about(path: Path) -> dict[str, Any]:
    """Raises Damaged."""
    try:
        found = json.loads((path / "about" / "metadata").read_text())
        told = found["told"]
        if found[SHA256] != _digest(told):
            raise ValueError("its SHA-256 is another")
        return told
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path}: about is not what was saved ({first_line(error)})") from error


def _metrics(path: Path) -> Mapping[str, float]:
    """Those that a state was saved with; none where they cannot be read."""
    try:
        return _about(path)["metrics"]
    except Damaged:
        return {}


def _check_same(path: Path, told: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where two states have not the same leaves."""
    shapes = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
    saved = {name: (one["shape"], one["dtype"]) for name, one in told.items()}
    for name in sorted(shapes.keys() | saved.keys(), key=lambda name: (name not in saved, name)):
        if shapes.get(name) != saved.get(name):
            has = _leaf(saved.get(name)) if name in saved else f"no such leaf{_near(name, saved)}"
            raise ValueError(
                f"{path} holds the state of another configuration: {name} is {_leaf(shapes.get(name))} here, and "
                f"{has} there; begin another folder, or give what this run was begun with"
            )


def _leaf(one: tuple[list[int], str] | None) -> str:
    return "no leaf" if one is None else f"{one[1]}{one[0]}"


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = closest(name, list(known)[:2000])
    return f" (nearest: {near[0]})" if near else ""


def _free(path: Path) -> Path:
    """The path, or where it is taken the first free one with a number after it: the same step may be damaged twice."""
    found, number = path, 2
    while found.exists():
        found, number = path.with_name(f"{path.name}_{number}"), number + 1
    return found


Report = Callable[[str], None]


def resumed(checkpoints: Checkpoints, state: Any, report: Report) -> Any:
    """The newest saved state that can be read, else `state`; what cannot be is put aside and told of.

    Raises ValueError where the newest good one has other leaves than `state`.
    """
    while (newest := checkpoints.newest()) is not None:
        try:
            return checkpoints.read(newest, state)
        except Damaged as error:
            aside = checkpoints.put_aside(newest)
            what = f"the state after {newest} steps is damaged, put aside as {aside.name}"
            report(f"{checkpoints.folder.parent}: {what} ({first_line(error)})")
    return state
