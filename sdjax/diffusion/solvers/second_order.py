"""Two evaluations a step: Heun's method and the midpoint method in log noise."""

import math

from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers.churn import Churn
from sdjax.diffusion.solvers.euler import finish, slope, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def heun(
    tape: Tape,
    schedule: Schedule,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Linear:
    """Heun's method with churn; Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    A step that ends clean is one of Euler's, so N steps are 2 N - 1 evaluations. s_churn, s_tmin, s_tmax, s_noise:
    see `Churn`.
    """
    churn, x = Churn(s_churn, s_tmin, s_tmax, s_noise), start(tape, schedule)
    for here, there in schedule.steps:
        x, here = churn.add(tape, schedule, x, here)
        x = heun_step(tape, x, here, there)
    return finish(x, schedule)


def heun_step(tape: Tape, x: Linear, here: Level, there: Level) -> Linear:
    """arXiv:2206.00364, algorithm 2, lines 7-11: the mean of the slopes at both ends, where the end has one."""
    d = slope(tape, x, here)
    guess = x + (there.ve - here.ve) * d
    if there.ve == 0.0:
        return guess
    return x + (there.ve - here.ve) * (d + slope(tape, guess, there)) / 2


def dpm2(
    tape: Tape,
    schedule: Schedule,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Linear:
    """DPM2, from k-diffusion: DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1) without its exponentials.

    A step that ends clean is one of Euler's, so N steps are 2 N - 1 evaluations. s_churn, s_tmin, s_tmax, s_noise:
    see `Churn`.
    """
    churn, x = Churn(s_churn, s_tmin, s_tmax, s_noise), start(tape, schedule)
    for here, there in schedule.steps:
        x, here = churn.add(tape, schedule, x, here)
        x = midpoint_step(tape, schedule, x, here, there.ve)
    return finish(x, schedule)


def midpoint_step(tape: Tape, schedule: Schedule, x: Linear, here: Level, ve: float) -> Linear:
    """To noise `ve` by the slope at the geometric mean of the noise, or by Euler's method where `ve` is 0."""
    d = slope(tape, x, here)
    if ve == 0.0:
        return x - here.ve * d
    middle = schedule.level(math.sqrt(here.ve * ve))
    return x + (ve - here.ve) * slope(tape, x + (middle.ve - here.ve) * d, middle)
