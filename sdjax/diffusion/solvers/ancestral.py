"""Ancestral sampling: each step goes to less noise than wanted and renews the rest.

Between noise s and t < s the reverse diffusion renews noise of variance t^2 (s^2 - t^2) / s^2 (Song et al. 2021,
arXiv:2011.13456, appendix F: ancestral sampling of the variance-exploding process). `eta` scales its deviation:
    up = min(t, eta t sqrt(1 - (t / s)^2)),     down = sqrt(t^2 - up^2).                                (1)
The draw is a piece of the image's Brownian path. All from k-diffusion.
"""

import math

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers.churn import scaled
from sdjax.diffusion.solvers.euler import finish, slope, start
from sdjax.diffusion.solvers.second_order import midpoint_step
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def split(here: float, there: float, eta: float) -> tuple[float, float]:
    """(down, up) of equation 1 between two variance-exploding noises."""
    eta = check_number("eta", eta, 0.0)
    up = min(there, eta * there * math.sqrt(1.0 - (there / here) ** 2))
    return math.sqrt(there**2 - up**2), up


def renew(tape: Tape, x: Linear, up: float, here: Level, there: Level) -> Linear:
    """x with noise of standard deviation `up`: one draw per step, even where it is 0, so that draw k is step k's."""
    return x + up * tape.draw(here, there)


def euler_ancestral(tape: Tape, schedule: Schedule, *, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """Ancestral sampling with Euler's steps. `eta`, >= 0: share of renewed noise. `s_noise`: factor on it."""
    x = start(tape, schedule)
    for here, there in schedule.steps:
        down, up = split(here.ve, there.ve, eta)
        x = x + (down - here.ve) * slope(tape, x, here)
        if eta:
            x = renew(tape, x, scaled(tape, s_noise) * up, here, there)
    return finish(x, schedule)


def dpm2_ancestral(tape: Tape, schedule: Schedule, *, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """Ancestral sampling with the steps of `dpm2`. `eta`, >= 0: share of renewed noise. `s_noise`: factor on it."""
    x = start(tape, schedule)
    for here, there in schedule.steps:
        down, up = split(here.ve, there.ve, eta)
        x = midpoint_step(tape, schedule, x, here, down)
        if eta:
            x = renew(tape, x, scaled(tape, s_noise) * up, here, there)
    return finish(x, schedule)


def dpmpp_2s_ancestral(tape: Tape, schedule: Schedule, *, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """Ancestral sampling with steps of DPM-Solver++(2S), Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2.

    In the variance-exploding scale a step is x' = (t / s) x + (1 - t / s) D, and D is taken at the geometric mean of
    the noise. A step without noise left is of first order. `eta`, >= 0: share of renewed noise. `s_noise`: factor
    on it.
    """
    x = start(tape, schedule)
    for here, there in schedule.steps:
        down, up = split(here.ve, there.ve, eta)
        denoised = tape.denoise(here.alpha * x, here)
        if down > 0.0:
            middle = schedule.level(math.sqrt(here.ve * down))
            half = middle.ve / here.ve
            denoised = tape.denoise(middle.alpha * (half * x + (1.0 - half) * denoised), middle)
        x = (down / here.ve) * x + (1.0 - down / here.ve) * denoised
        if eta:
            x = renew(tape, x, scaled(tape, s_noise) * up, here, there)
    return finish(x, schedule)
