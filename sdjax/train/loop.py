"""The loop: steps, a line of progress now and then, checkpoints by the clock, a stop at the first NaN.

A run is its folder (see `run_folder`). Started again on the same folder it goes on where it was, with the same batches
and the same randomness, since both are functions of the step's number: there is no position in the data to keep. Killed
at any moment it loses what it did since the last checkpoint; told to end (SIGTERM, Ctrl-C) it saves first. A checkpoint
that is damaged is put aside, and the one before it taken.

The devices, and what of the state lies where, are the step's (see `mesh`); a run may go on with others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from sdjax.core.keys import key, settled
from sdjax.core.tree import Params
from sdjax.train import run_folder
from sdjax.train.checkpoint import CHECKPOINTS, Damaged, Retention, first_line, opened, resumed, saved_steps
from sdjax.train.interrupt import Interrupted, watched
from sdjax.train.mesh import place, share
from sdjax.train.metrics import Recorder
from sdjax.train.progress import Clock, Progress
from sdjax.train.progress import Diverged as Diverged
from sdjax.train.run_folder import settings_of as settings_of
from sdjax.train.state import TrainState
from sdjax.train.step import Step
from sdjax.train.watches import Watch


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
    (see `watches`); metrics that it returns are that step's too. `recorders` are told all of them.

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
        run = Progress(folder, checkpoints, list(recorders), {"seed": seed, "settings": settings}, steps, every, report)
        run.begin(int(state.step))
        if run.first:
            left = f"it goes on to {steps}" if run.first < steps else "nothing is left to do"
            report(f"{folder}: {run.first} steps are done; {left}")
        own, clock = key(seed), Clock(save_seconds, limit_seconds)
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
    steps = saved_steps(Path(folder).resolve() / CHECKPOINTS)
    if not steps:
        raise FileNotFoundError(f"{folder}: no checkpoint there; train first")
    return max(steps)
