"""A schedule: the noise levels of a run, or of a part of one, and from which to which each step goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from sdjax.diffusion.noise import Level

CLEAN = Level(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """The steps of a run. `steps`: (level it starts from, level it goes to), noisiest first.

    `init`: scale of the unit Gaussian x_T at the network's own scale on the first level. `end`: the level of the
    result, x = alpha x0 + sigma e whatever scale the solver thinks in; the last step's own, but for solvers that stop
    short of it. `timestep`: what the network is told at noise `ve` between levels, for solvers that evaluate there.
    `before`, `after`: the whole run's steps in front of these and behind them, where these are a `segment` of it.

    A run that ends at the smallest training level may have a last step that goes nowhere, to its own level:
    diffusers' do on karras, exponential, beta and lu.
    """

    steps: tuple[tuple[Level, Level], ...]
    init: float
    end: Level
    timestep: Callable[[Any], Any]
    before: int = field(default=0, kw_only=True)
    after: int = field(default=0, kw_only=True)

    @property
    def whole(self) -> int:
        """Steps of the whole run."""
        return self.before + len(self.steps) + self.after

    def left(self, i: int) -> int:
        """Steps from step i of these to the end of the whole run, step i counted."""
        return len(self.steps) - i + self.after

    def changed(self, change: "Callable[[Schedule], Schedule]") -> "Schedule":
        """The schedule whose plain steps, one from each level to the next, have gone through `change`."""
        return change(self)

    def level(self, ve: float) -> Level:
        """The level of variance-exploding noise `ve`, anywhere between those visited."""
        return Level.from_ve(ve, float(self.timestep(ve)))

    @property
    def gap(self) -> str:
        """Why a step starts neither where the last one ended nor where it began (made twice); or ""."""
        for (begun, there), (here, _) in zip(self.steps, self.steps[1:], strict=False):
            if here.sigma not in (there.sigma, begun.sigma):
                return f"a step goes to timestep {there.t:g} and the next starts from {here.t:g}"
        return ""


def chain(levels: Sequence[Level]) -> tuple[tuple[Level, Level], ...]:
    """Each level to the next."""
    return tuple(pairwise(levels))


def last_level(ve: float, timestep: Callable[[Any], Any]) -> Level:
    """Where a run ends: clean, or at noise `ve` and what the network is told there."""
    return Level.from_ve(ve, float(timestep(ve))) if ve else CLEAN


def levels_of(ve: np.ndarray, timesteps: np.ndarray) -> list[Level]:
    """Levels from their noise [n] and the timesteps [n] that the network is told there."""
    return [Level.from_ve(float(s), float(t)) for s, t in zip(ve, timesteps, strict=True)]


def check_decreasing(ve: np.ndarray, name: str) -> np.ndarray:
    """Return `ve`; raise ValueError where two levels are equal, out of order, or one is not finite."""
    if not np.isfinite(ve).all() or (np.diff(ve) >= 0).any():
        raise ValueError(
            f"{len(ve)} steps are too many for schedule {name!r}: two of them fall on one noise level; "
            "take fewer steps, or schedule='karras'"
        )
    return ve
