"""Solvers that walk whole timesteps and renew the noise: DDIM and its kin."""

import math

from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def ddim(tape: Tape, schedule: Schedule, *, eta: float = 0.0) -> Linear:
    """DDIM, Song et al. 2020, arXiv:2010.02502, equations 12 and 16.

    `eta`, 0 .. 1: share of fresh noise, from none to as much as DDPM's.

    A bound on D leaves the noise direction alone: that is taken from the unclipped D, as in diffusers.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in 0 .. 1, not {eta!r}")
    x = tape.x_T
    for here, there in schedule.steps:
        denoised = tape.denoise(x, here)
        direction = (x - here.alpha * denoised) / here.sigma
        clipped = tape.clip(denoised)
        fresh = eta * math.sqrt((there.sigma / here.sigma) ** 2 * max(0.0, 1.0 - (here.alpha / there.alpha) ** 2))
        x = there.alpha * clipped + math.sqrt(there.sigma**2 - fresh**2) * direction
        if eta:  # one draw per step even where its weight is 0, so that draw k always belongs to step k
            x = x + fresh * tape.draw(here, there)
    return x
