"""Solvers of the probability-flow ODE in the variance-exploding scale, from k-diffusion.

With x = x0 + ve e and D the predicted clean latents, the ODE is (Karras et al. 2022, arXiv:2206.00364, equations 1
and 3)
    dx / d ve = (x - D(x, ve)) / ve.                                                                   (1)
"""

import math

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers.churn import Churn
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def start(tape: Tape, schedule: Schedule) -> Linear:
    """x_T at the variance-exploding scale, which has none for a first level without signal (alpha 0)."""
    return tape.x_T / schedule.steps[0][0].alpha


def finish(x: Linear, schedule: Schedule) -> Linear:
    """x, which is variance-exploding, at the network's own scale."""
    return schedule.end.alpha * x


def slope(tape: Tape, x: Linear, level: Level) -> Linear:
    """Equation 1 at x, which is variance-exploding: one network evaluation."""
    return (x - tape.clip(tape.denoise(level.alpha * x, level))) / level.ve


def euler(
    tape: Tape,
    schedule: Schedule,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Linear:
    """Euler's method on equation 1, with churn; Karras et al. 2022, arXiv:2206.00364, algorithm 2 without lines 9-11.

    s_churn, s_tmin, s_tmax, s_noise: see `Churn`. The network sees the latents with the noise added, as the paper
    and k-diffusion have it; diffusers' pipelines show it those from before.
    """
    churn, x = Churn(s_churn, s_tmin, s_tmax, s_noise), start(tape, schedule)
    for here, there in schedule.steps:
        x, here = churn.add(tape, schedule, x, here)
        x = x + (there.ve - here.ve) * slope(tape, x, here)
    return finish(x, schedule)


def gradient_estimation(tape: Tape, schedule: Schedule, *, gamma: float = 2.0) -> Linear:
    """Gradient estimation, Permenter & Yuan 2023, arXiv:2306.04848: their sampler that mixes the last two slopes.

    A step takes gamma d_i + (1 - gamma) d_(i-1); one that ends clean takes the prediction itself, as ComfyUI does.
    `gamma`: 1 is `euler`, 3/2 on even steps Adams-Bashforth.
    """
    gamma = check_number("gamma", gamma)
    x, before = start(tape, schedule), None
    for here, there in schedule.steps:
        d = slope(tape, x, here)
        change = d - before if before is not None and there.ve > 0.0 else 0.0 * d
        x = x + (there.ve - here.ve) * (d + (gamma - 1.0) * change)
        before = d
    return finish(x, schedule)
