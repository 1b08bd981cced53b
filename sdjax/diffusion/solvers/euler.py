"""Solvers of the probability-flow ODE in the variance-exploding scale, from k-diffusion."""

from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def euler(tape: Tape, schedule: Schedule) -> Linear:
    """Euler's method on the probability-flow ODE; Karras et al. 2022, arXiv:2206.00364, equations 1 and 3."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        denoised = tape.denoise(here.alpha * x, here)
        x = x + (there.ve - here.ve) * (x - denoised) / here.ve
    return x
