"""Progress: what a run says of its steps, when it saves, and when it must not go on."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdjax.train import run_folder
from sdjax.train.checkpoint import Checkpoints
from sdjax.train.metrics import Recorder, Row
from sdjax.train.state import TrainState


class Diverged(ValueError):
    """The loss or its gradient became NaN or infinite; the message names the step and the last good checkpoint."""


@dataclass
class Progress:
    """What a run has not told of yet: the metrics of its newest steps, still on the devices."""

    folder: Path
    checkpoints: Checkpoints
    recorders: list[Recorder]
    about: Mapping[str, Any]
    steps: int
    every: int
    report: Callable[[str], None]
    first: int = 0
    compiled: bool = False
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
        if not self.compiled:  # which the first step waits for, and no other
            self.compiled, self.begun = True, time.monotonic()
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
            pace = (time.monotonic() - self.begun) / max(1, done - self.first - 1)
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


class Clock:
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
