"""Watches: what a run does beside its steps, now and then: a look at the averaged parameters, a copy of them kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from sdjax.core.tree import Params
from sdjax.train.averages import PowerFunction, write_snapshot
from sdjax.train.mesh import fetched
from sdjax.train.metrics import Row
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import TrainState, evaluated

Watch = Callable[[int, TrainState], Row | None]  # told the steps done and the state; gives metrics of that step


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
