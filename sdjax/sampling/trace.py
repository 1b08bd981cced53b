"""The steps of a run, to look at while it goes on or afterwards.

A row's x and D are linear in what the scan keeps anyway (see `diffusion.table`), so any of them can be put together
again without the network: the latents that it saw, and the clean latents that it predicted there,

    x_0 = (x_t - sigma eps) / alpha,

"the jump" to the end, from which a picture can be told long before the noise is gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.core import short
from sdjax.diffusion.table import Table
from sdjax.request.request import Request


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One network evaluation of b pictures.

    Attributes:
      number: of the evaluation, from 0. of: how many there are.
      timestep: what the network was told; sigma: the noise there, sigma / alpha. Those of the first picture.
      latents: x, float32 `b h w c`, at the network's scale. denoised: the clean latents predicted there, likewise.
    """

    number: int
    of: int
    timestep: float
    sigma: float
    latents: np.ndarray
    denoised: np.ndarray

    def __repr__(self) -> str:
        """Of one line, without the latents."""
        name = f"{type(self).__name__}(step {self.number} of {self.of}"
        return f"{name}, t {self.timestep:.4g}, sigma {self.sigma:.3g})"


Callback = Callable[[Step], Any]


@dataclass(frozen=True, eq=False)
class Sampled:
    """How a run ended.

    Attributes:
      latents: the final ones, `b h w c`. evaluations: how many were made.
      steps: those that were to be kept. stopped: after how many evaluations it was stopped, or None.
    """

    latents: Any
    evaluations: int
    steps: tuple[Step, ...] = ()
    stopped: int | None = None

    __repr__ = short.fields

    def then(self, rest: "Sampled") -> "Sampled":
        """This run and what a refiner made of it, whose own steps are not kept."""
        stopped = None if rest.stopped is None else self.evaluations + rest.stopped
        return Sampled(rest.latents, self.evaluations + rest.evaluations, self.steps, stopped)


@dataclass(frozen=True, eq=False)
class Trace:
    """A run as far as it has come: any row that has been run can be looked at again, without the network.

    Attributes:
      asked: what is run. table: the whole of it. known: what is held of the pictures. rows: int [n], those in which the
        network runs, for one picture or more.
      inspect: (a row's number, known) -> (x, D) of that row: `programs.inspect_row` of this run's carry and table.
    """

    asked: Request
    table: Table
    rows: np.ndarray
    inspect: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
    known: Any

    __repr__ = short.fields

    def done(self, row: int) -> int:
        """Evaluations in front of a row."""
        return int((self.rows < row).sum())

    def steps(self, numbers: Sequence[int]) -> tuple[Step, ...]:
        """The evaluations of these numbers, which have been made."""
        return tuple(map(self._step, numbers))

    def stopped(self, row: int, kept: Sequence[int]) -> Sampled:
        """What there is in front of a row: each picture's result, or else the clean latents last predicted."""
        done = self.done(row)
        final, ended = self._step(done - 1).denoised.copy(), self._look(row)[0]
        for i, plan in enumerate(self.asked.plans):
            if plan.rows <= row + 1 and not plan.unfinished:
                final[i] = ended[i]
        return Sampled(final, done, self.steps([number for number in kept if number < done]), done)

    def _step(self, number: int) -> Step:
        row = int(self.rows[number])
        fields = (self.table.timestep, self.table.alpha, self.table.sigma)
        timestep, alpha, sigma = (np.ravel(field[row])[0] for field in fields)
        noise = float(sigma) / float(alpha) if alpha else float("inf")
        own = self._own_rows(row)
        seen = {one: self._look(one) for one in set(own)}
        x = np.stack([seen[one][0][i] for i, one in enumerate(own)])
        denoised = np.stack([seen[one][1][i] for i, one in enumerate(own)])
        for i, plan in enumerate(self.asked.plans):
            if not plan.evaluations:  # the picture as it was given
                denoised[i] = x[i]
        return Step(number, len(self.rows), float(timestep), noise, x, denoised)

    def _own_rows(self, row: int) -> list[int]:
        """Each picture's last evaluation up to a row: one that is done shows its last."""
        before = np.broadcast_to(
            np.reshape(self.table.evaluate[: row + 1], (row + 1, -1)), (row + 1, len(self.asked.plans))
        )
        return [int(np.flatnonzero(own)[-1]) if own.any() else 0 for own in before.T]

    def _look(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        x, denoised = self.inspect(jnp.int32(row), self.known)
        return np.asarray(x), np.asarray(denoised)


@dataclass(frozen=True, eq=False)
class Callbacks:
    """How a run is followed.

    Attributes:
      progress: a bar; None shows one where standard error is a terminal.
      callback: called with the `Step` after every evaluation; where it returns False, the run stops.
      show: of a run of so many evaluations, those to be kept. stop_after: evaluations after which the run stops.
    """

    progress: bool | None = None
    callback: Callback | None = None
    show: Callable[[int], Sequence[int]] = lambda count: ()
    stop_after: int | None = None

    @property
    def closely(self) -> bool:
        """Whether the run goes row by row."""
        return self.callback is not None or self.stop_after is not None

    def after(self, evaluations: int) -> "Callbacks":
        """For what goes on when so many evaluations have been made; nothing more of it is kept."""
        left = None if self.stop_after is None else self.stop_after - evaluations
        return replace(self, show=Callbacks.show, stop_after=left)

    def stops(self, seen: Trace, done: int) -> bool:
        """Shows the last evaluation of `done`; whether the run is to stop there."""
        answer = None if self.callback is None else self.callback(seen.steps((done - 1,))[0])
        return (isinstance(answer, bool | np.bool_) and not answer) or done == self.stop_after
