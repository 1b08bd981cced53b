"""Restart sampling: noise is put back and removed again, so that errors of the ODE are forgotten."""

import math
from itertools import pairwise

import numpy as np

from sdjax.diffusion import sigmas
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers.churn import scaled
from sdjax.diffusion.solvers.euler import finish, start
from sdjax.diffusion.solvers.second_order import heun_step
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

LOW, HIGH = 0.1, 2.0  # noise at which a restart begins, and up to which it goes, as near as the levels come


def restart(tape: Tape, schedule: Schedule, *, s_noise: float = 1.0) -> Linear:
    """Restart, Xu et al. 2023, arXiv:2306.14878, algorithm 1, with A1111's settings.

    Heun's steps. From 20 steps on their levels are Karras's (rho 7) between the schedule's first and last, and 9 of
    the N steps are kept for one restart: at noise 0.1 the latents are given noise 2 again, and come down in those
    steps; from 36 on there are two restarts of N // 4 steps each. Runs of fewer than 20 steps are `heun`.
    `s_noise`: factor on the noise put back.
    """
    x, at = start(tape, schedule), math.inf
    for here, there in _steps(schedule):
        if here.ve > at:
            x = x + scaled(tape, s_noise) * math.sqrt(here.ve**2 - at**2) * tape.draw()
        x, at = heun_step(tape, x, here, there), there.ve
    return finish(x, schedule)


def _steps(schedule: Schedule) -> list[tuple[Level, Level]]:
    """All steps of a run in order; a restart begins where one starts above the end of the last."""
    n = len(schedule.steps)
    if n < 20:
        return list(schedule.steps)
    length, times = (9, 1) if n < 36 else (n // 4, 2)
    top, (bottom, end) = schedule.steps[0][0], schedule.steps[-1]
    levels = [*_karras(schedule, top, bottom, n - times * length), end]
    low, high = (int(np.argmin([abs(level.ve - ve) for level in levels])) for ve in (LOW, HIGH))
    again = [*pairwise(_karras(schedule, levels[high], levels[low], length + 1))] if high < low else []
    steps = list(pairwise(levels))
    return [*steps[:low], *again * times, *steps[low:]]


def _karras(schedule: Schedule, first: Level, last: Level, count: int) -> list[Level]:
    """`count` levels from `first` to `last`."""
    between = sigmas.karras(last.ve, first.ve, count)[1:-1]
    return [first, *(schedule.level(float(ve)) for ve in between), last]
