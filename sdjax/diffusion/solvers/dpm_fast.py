"""DPM-Solver by single steps: within a step the network is asked at noise levels of the step's own.

With d = (x - D) / ve the predicted noise, x at the variance-exploding scale, and h = log(here / there) the step, Lu et
al. 2022, arXiv:2206.00927, equation 3.7 and algorithms 1 and 2 become, in k-diffusion's scale, plain arithmetic: what
the paper writes as sigma_t (e^h - 1) is here - there. The steps below take numbers or arrays, so that the adaptive
solver shares them.
"""

import math
from collections.abc import Callable
from typing import Any

from sdjax.diffusion.noise import Level
from sdjax.diffusion.solvers.ancestral import renew, split
from sdjax.diffusion.solvers.churn import scaled
from sdjax.diffusion.solvers.euler import finish, slope, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

Slope = Callable[[Any, Any], Any]  # (x, ve) -> d, one network evaluation


def pair_12(at: Slope, x: Any, d: Any, here: Any, there: Any, h: Any) -> tuple[Any, Any]:
    """Two steps from `here` to `there`, of first and of second order; one evaluation beyond d (algorithm 1)."""
    middle = (here * there) ** 0.5
    low = x + (there - here) * d
    return low, x + (there - here) * at(x + (middle - here) * d, middle)


def pair_23(at: Slope, x: Any, d: Any, here: Any, there: Any, h: Any) -> tuple[Any, Any]:
    """Two steps from `here` to `there`, of second and of third order; two evaluations beyond d (algorithm 2).

    The paper's r_1 = 1/3 and r_2 = 2/3; the second-order step is algorithm 1's with that r_1.
    """
    first, second = here * (there / here) ** (1 / 3), here * (there / here) ** (2 / 3)
    change = at(x + (first - here) * d, first) - d
    low = x + (there - here) * (d + 1.5 * change)
    u = x + (second - here) * d - 2.0 * ((here - second) / (2 / 3 * h) - second) * change
    bend = at(u, second) - d
    return low, x + (there - here) * d - 1.5 * ((here - there) / h - there) * bend


def dpm_fast(tape: Tape, schedule: Schedule, *, eta: float = 0.0, s_noise: float = 1.0) -> Linear:
    """DPM-Solver-fast, arXiv:2206.00927, section 3.4, from k-diffusion: N evaluations in all.

    Third-order steps, even in log noise from the schedule's first level to its end, and one of lower order (two where
    3 divides N) last; of the schedule's other levels only the number counts. So the method is of third order where N is
    3 m - 1, and of second otherwise. As in k-diffusion the result keeps the noise of the end. `eta`, >= 0: share of
    renewed noise. `s_noise`: factor on it.
    """
    top, bottom, n = schedule.steps[0][0], schedule.end.ve, len(schedule.steps)
    if not 0.0 < bottom < top.ve:
        raise ValueError(
            f"dpm_fast goes from one noise level to a smaller one above 0, not from {top.ve:g} to {bottom:g}; "
            "take 2 steps or more"
        )
    m = n // 3 + 1
    levels = [top, *(schedule.level(top.ve * (bottom / top.ve) ** (i / m)) for i in range(1, m + 1))]
    x = start(tape, schedule)
    for i, order in enumerate([3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]):
        here, there = levels[i], levels[i + 1]
        down = max(split(here.ve, there.ve, eta)[0], min(bottom, there.ve))
        x = _step(order, tape, schedule, x, here, down)
        if eta:
            x = renew(tape, x, scaled(tape, s_noise) * math.sqrt(there.ve**2 - down**2), here, there)
    return finish(x, schedule)


def _step(order: int, tape: Tape, schedule: Schedule, x: Linear, here: Level, ve: float) -> Linear:
    """One step of order 1 .. 3 to noise `ve`."""
    d = slope(tape, x, here)
    if order == 1:
        return x + (ve - here.ve) * d
    pair = pair_12 if order == 2 else pair_23
    return pair(lambda u, s: slope(tape, u, schedule.level(s)), x, d, here.ve, ve, math.log(here.ve / ve))[1]
