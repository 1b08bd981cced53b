"""The loop: steps, a line of progress now and then, checkpoints by the clock, a stop at the first NaN.

A run is its folder (see `run_folder`). Started again on the same folder it goes on where it was, with the same batches
and the same randomness, since both are functions of the step's number: there is no position in the data to keep. Killed
at any moment it loses what it did since the last checkpoint; told to end (SIGTERM, Ctrl-C) it saves first. A checkpoint
that is damaged is put aside, and the one before it taken.

The devices, and what of the state lies where, are the step's (see `mesh`); a run may go on with others.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdjax.core.keys import key, settled
from sdjax.core.tree import Params
from sdjax.train import run_folder
from sdjax.train.averages import PowerFunction, write_snapshot
from sdjax.train.checkpoint import Checkpoints, Damaged, Retention, first_line, opened, resumed, saved_steps
from sdjax.train.interrupt import Interrupted, watched
from sdjax.train.mesh import fetched, place, share
from sdjax.train.metrics import Recorder, Row
from sdjax.train.optimisers import Optimiser
from sdjax.train.run_folder import settings_of as settings_of
from sdjax.train.state import TrainState, evaluated
from sdjax.train.step import Step

Watch = Callable[[int, TrainState], Row | None]


class Diverged(ValueError):
    """The loss or its gradient became NaN or infinite; the message names the step and the last good checkpoint."""


def fit(
    folder: str | Path,
    state: TrainState,
    step: Step,
    batch: Callable[[int], Any],
    rate: Callable[[int], float],
    *,
    steps: int,
    seed: int,
    settings: dict[str, Any],
    every: int = 50,
    save_seconds: float = 50.0,
    limit_seconds: float | None = None,
    retention: Retention | None = None,
    recorders: Sequence[Recorder] = (),
    watch: Watch = lambda done, state: None,
    report: Callable[[str], None] = print,
) -> TrainState:
    """Trains until `steps` steps are done, resuming from `folder` where it holds a checkpoint.

    `batch(n)` gives step n's batch, every leaf `b ...` (in several processes the rows that `mesh.own_rows` says),
    `rate(n)` its learning rate. `settings` is what the run was asked to be: a folder begun with other settings is
    refused. The progress line is printed every `every` steps; the state is saved every `save_seconds`, however long a
    step takes, after every `retention.every` steps, and at the end: after `steps` steps, or with the first one that
    ends after `limit_seconds`. In several processes the clock is the first one's, looked at every `every` steps.

    After every step `watch` is called with the number of those done and the state, which the next step will overwrite
    (see `Every`); metrics that it returns are that step's too. `recorders` are told all of them.

    Raises:
        ValueError: the folder belongs to a run with other settings, or the batch does not divide over the devices.
        Diverged: the loss or its gradient is not finite. The last checkpoint stays.
        OSError: the disk is full, or the folder cannot be written. The last checkpoint stays.
        Interrupted: SIGTERM or SIGINT. The state after the last step is saved.
    """
    folder = Path(folder).resolve()
    run_folder.begin(folder, settings)
    retention = retention or Retention()
    if jax.process_count() > 1:  # the first one makes the folder, and alone speaks
        multihost_utils.sync_global_devices("the run's folder")
        report = report if jax.process_index() == 0 else lambda line: None
    with opened(folder, retention) as checkpoints, watched() as told:
        state = resumed(checkpoints, place(state, step.mesh), report)
        run_folder.check_room(folder, state)
        run = _Run(folder, checkpoints, list(recorders), {"seed": seed, "settings": settings}, steps, every, report)
        run.begin(int(state.step))
        own, clock = key(seed), _Clock(save_seconds, limit_seconds)
        try:
            for n in range(run.first, steps):
                with settled():
                    state, metrics = step(state, share(batch(n), step.mesh), own, rate(n))
                run.note(metrics, rate(n), watch(n + 1, state))
                stop, shown = told.told(n + 1), (n + 1) % every == 0
                late, due = clock.agreed(shown)
                last = n + 1 == steps or late or stop
                due = due or last or bool(retention.every and (n + 1) % retention.every == 0)
                if shown or due:
                    run.read(n + 1, shown or last)
                if due:
                    run.save(n + 1, state)
                    clock.saved()
                if last:
                    break
        finally:
            run.end()
        if told.name is not None:
            checkpoints.wait()
            raise Interrupted(f"{folder}: stopped by {told.name}, with its state saved; start it again to go on")
    return state


@dataclass
class _Run:
    """What a run has not told of yet: the metrics of its newest steps, still on the devices."""

    folder: Path
    checkpoints: Checkpoints
    recorders: list[Recorder]
    about: Mapping[str, Any]
    steps: int
    every: int
    report: Callable[[str], None]
    first: int = 0
    begun: float = field(default_factory=time.monotonic)
    unread: list[tuple[Any, dict[str, float]]] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)

    def begin(self, done: int) -> None:
        """With so many steps done before."""
        self.first, self.begun = done, time.monotonic()
        self.recorders = self.recorders if jax.process_index() == 0 else []
        for recorder in self.recorders:
            recorder.begin(done)

    def note(self, metrics: Any, rate: float, more: Row | None) -> None:
        """One step's metrics, and what is known of it on the host."""
        self.unread.append((metrics, {"rate": rate, **(more or {})}))

    def read(self, done: int, shown: bool) -> None:
        """Fetches what is unread. Raises Diverged at the first step whose loss or gradient is not finite."""
        read, self.unread = jax.device_get(self.unread), []
        for n, (metrics, more) in enumerate(read, done + 1 - len(read)):
            first_of_all = {name: metrics[name] for name in ("loss", "gradient_norm")}
            self.newest = {name: float(value) for name, value in {**first_of_all, **metrics, **more}.items()}
            self._check_finite(n)
            for recorder in self.recorders:
                recorder.record(n, self.newest)
        if shown:
            pace = (time.monotonic() - self.begun) / max(1, done - self.first)
            self.report(_line(done, self.steps, self.newest["loss"], self.newest["gradient_norm"], pace))

    def save(self, done: int, state: TrainState) -> None:
        """Begins to write a checkpoint, after the recorders' files."""
        for recorder in self.recorders:
            recorder.flush()
        run_folder.check_room(self.folder, state)
        self.checkpoints.save(done, state, self.about, {k: v for k, v in self.newest.items() if math.isfinite(v)})

    def end(self) -> None:
        """After the last step, whatever ended it."""
        for recorder in self.recorders:
            recorder.end()

    def _check_finite(self, n: int) -> None:
        loss, norm = self.newest["loss"], self.newest["gradient_norm"]
        if not math.isfinite(loss + norm):
            self.checkpoints.wait()
            good = self.checkpoints.newest()
            kept = "nothing saved yet" if good is None else f"last good state: step {good}, on disk"
            what = f"loss {loss}, gradient {norm} at step {n}; {kept}"
            raise Diverged(f"{self.folder}: {what}. {_cause(loss, self.newest['rate'])}")


class _Clock:
    """When to save, and when time is up; in several processes the first one's says it for all."""

    def __init__(self, save_seconds: float, limit_seconds: float | None) -> None:
        self.save, self.limit = save_seconds, math.inf if limit_seconds is None else limit_seconds
        self.begun = self.last = time.monotonic()

    def agreed(self, shown: bool) -> tuple[bool, bool]:
        """(Whether time is up, whether to save); several processes ask each other where `shown`."""
        now = time.monotonic()
        late, due = now - self.begun > self.limit, now - self.last > self.save
        if jax.process_count() == 1:
            return late, due
        if not shown:
            return False, False
        late, due = multihost_utils.broadcast_one_to_all(np.array([late, due]))
        return bool(late), bool(due)

    def saved(self) -> None:
        """Now."""
        self.last = time.monotonic()


@dataclass(frozen=True)
class Every:
    """A `watch` that calls `call(steps done, the evaluated parameters)` after every n-th step.

    What it returns are metrics of that step: "validation_loss" is what `Retention.best` goes by.
    """

    n: int
    optimiser: Optimiser
    call: Callable[[int, Params], Row | None]

    def __call__(self, done: int, state: TrainState) -> Row | None:
        return None if done % self.n else self.call(done, evaluated(state, self.optimiser))


@dataclass(frozen=True)
class Snapshots:
    """A `watch` that keeps averages as they are after every n-th step, for `averages.reconstruct`."""

    n: int
    folder: str | Path
    averages: tuple[PowerFunction, ...]

    def __call__(self, done: int, state: TrainState) -> None:
        if done % self.n == 0:
            for average in self.averages:
                params = fetched(state.averages[average.name])
                if jax.process_index() == 0:
                    write_snapshot(self.folder, average, params, done)


def all_of(*watches: Watch) -> Watch:
    """A `watch` that is several; the metrics of all of them."""

    def watch(done: int, state: TrainState) -> Row:
        return {name: value for one in watches for name, value in (one(done, state) or {}).items()}

    return watch


def restore(folder: str | Path, state: TrainState) -> TrainState:
    """The newest state saved in a run's folder, shaped and laid out like `state`.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: its newest checkpoint is damaged, or of another configuration.
    """
    folder = Path(folder).resolve()
    newest = newest_step(folder)
    with opened(folder) as checkpoints:
        try:
            return checkpoints.read(newest, state)
        except Damaged as error:
            raise ValueError(f"{folder}: the state after {newest} steps is damaged ({first_line(error)})") from error


def averaged(folder: str | Path, params: Params) -> Params:
    """The averaged parameters of a run's newest state, on the host, shaped like `params`; nothing else of it is read.

    Raises as `restore`, and ValueError where the run keeps no average, or several.
    """
    folder = Path(folder).resolve()
    newest = newest_step(folder)
    with opened(folder) as checkpoints:
        try:
            names = {name.split("/")[1] for name in checkpoints.about(newest)["leaves"] if name.startswith("averages/")}
            if len(names) != 1:
                raise ValueError(f"{folder} keeps {len(names)} averages, not one; `restore` gives its whole state")
            return jax.device_get(checkpoints.read(newest, params, f"averages/{names.pop()}/"))
        except Damaged as error:
            raise ValueError(f"{folder}: the state after {newest} steps is damaged ({first_line(error)})") from error


def newest_step(folder: str | Path) -> int:
    """How many steps the newest saved state of a run's folder has behind it.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
    """
    steps = saved_steps(Path(folder).resolve() / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{folder}: no checkpoint there; train first")
    return max(steps)


def _line(done: int, steps: int, loss: float, norm: float, pace: float) -> str:
    left = (steps - done) * pace / 60
    return f"step {done}/{steps} loss {loss:.4f} gradient {norm:.2f} {pace:.3f} s/step {left:.1f} min left"


def _cause(loss: float, rate: float) -> str:
    """What is likely to be behind a step that is not finite."""
    if math.isfinite(loss):
        return (
            f"The loss is finite and its gradient is not: a root or a division at 0, or half precision; rate {rate:g}"
        )
    return (
        f"Likely: a rate too high ({rate:g}; try a third), a picture or latent of this batch that is not finite, "
        "or half precision in a network that overflows in it"
    )
