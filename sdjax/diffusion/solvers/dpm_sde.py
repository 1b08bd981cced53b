"""Stochastic DPM-Solver++ as k-diffusion has it: the reverse SDE, exact in its linear part."""

import math

from sdjax.diffusion import brownian
from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.solvers.ancestral import split
from sdjax.diffusion.solvers.churn import scaled
from sdjax.diffusion.solvers.dpm import multistep
from sdjax.diffusion.solvers.euler import finish, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape


def dpmpp_sde(tape: Tape, schedule: Schedule, *, eta: float = 1.0, s_noise: float = 1.0) -> Linear:
    """DPM-Solver++ SDE, from k-diffusion: arXiv:2211.01095, algorithm 1 with r = 1/2, each of its two parts ancestral.

    Both the first part and the whole step renew noise, by the same Brownian path: the draw of the whole step is
    made of those of its two parts. A step that ends clean is of first order, so N steps are 2 N - 1 evaluations.
    `eta`, >= 0: share of renewed noise. `s_noise`: factor on it.
    """
    x, s_noise = start(tape, schedule), scaled(tape, s_noise) if eta else 1.0
    for here, there in schedule.steps:
        denoised = tape.denoise(here.alpha * x, here)
        down, up = split(here.ve, there.ve, eta)
        if there.ve > 0.0:
            middle = schedule.level(math.sqrt(here.ve * there.ve))
            part_down, part_up = split(here.ve, middle.ve, eta)
            u = (part_down / here.ve) * x + (1.0 - part_down / here.ve) * denoised
            first = tape.draw(here, middle) if eta else 0.0 * x
            denoised = tape.denoise(middle.alpha * (u + s_noise * part_up * first), middle)
        x = (down / here.ve) * x + (1.0 - down / here.ve) * denoised
        if there.ve > 0.0 and eta:
            p = brownian.share(here, middle, there)
            whole = math.sqrt(p) * first + math.sqrt(1.0 - p) * tape.draw(middle, there)
            x = x + s_noise * up * whole
    return finish(x, schedule)


def dpmpp_3m_sde(tape: Tape, schedule: Schedule, *, eta: float = 1.0) -> Linear:
    """DPM-Solver++(3M) SDE, from k-diffusion: `dpmpp_3m` with renewed noise, of full order on short runs too.

    `eta`, >= 0: share of renewed noise. A step that ends clean gives the prediction itself.
    """
    eta = check_number("eta", eta, 0.0)
    return multistep(tape, schedule, 3, "heun", lower_order_final=False, euler_at_final=False, eta=eta)
