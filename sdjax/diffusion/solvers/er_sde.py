"""ER-SDE-Solver: the reverse diffusion with as much renewed noise as a function of the level says."""

import math
from collections.abc import Callable

from sdjax.diffusion.solvers import exponential as ei
from sdjax.diffusion.solvers.euler import finish, start
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

POINTS = 200  # of the rectangle rule that the authors' code takes for the integrals over 1 / phi


def much_noise(ve: float) -> float:
    """phi(s) = s (e^(s^0.3) + 10): the authors' own choice, arXiv:2309.06169, appendix A.8."""
    return ve * (math.exp(ve**0.3) + 10.0)


def er_sde(
    tape: Tape,
    schedule: Schedule,
    *,
    max_stage: int = 3,
    noise_scaler: Callable[[float], float] = much_noise,
) -> Linear:
    """ER-SDE-Solver-1 to -3, Cui et al. 2023, arXiv:2309.06169, algorithms 1 to 3, as ComfyUI's sample_er_sde.

    For x / alpha and noise s = ve the extended reverse diffusion with noise scale phi goes from s to t by
        x_t = r x_s + (1 - r) D + (t - s + phi(t) A_0) D' + ((t - s)^2 / 2 + phi(t) A_1) D'' + sqrt(t^2 - s^2 r^2) n,
        r = phi(t) / phi(s),    A_k = int_t^s (u - s)^k / phi(u) du,
    D' and D'' being difference quotients over the last two and three predictions. D' is the slope behind s and not
    at s, which leaves stage 3 of second order too.

    Options:
      max_stage: 1 .. 3, how many of D, D', D'' are used; a run reaches it step by step.
      noise_scaler: phi(s), above 0, whose quotient phi(s) / s must not fall as s grows; s is the ODE, s^2 the reverse
        diffusion itself.

    A step that ends clean gives D. The A_k are taken by the authors' rectangle rule of 200 points, like everywhere:
    it moves the result by some 1e-4, and only beyond a hundred steps it lowers the order.
    """
    stages = ei.check_order("er_sde", "max_stage", max_stage)
    x, past = start(tape, schedule), list[tuple[Linear, float]]()
    for here, there in schedule.steps:
        s, t = here.ve, there.ve
        past = [(tape.denoise(here.alpha * x, here), s), *past][:stages]
        if t == 0.0:
            x = past[0][0]
            continue
        r = _ratio(noise_scaler, s, t)
        x = r * x + (1.0 - r) * past[0][0] + _corrections(past, s, t, noise_scaler)
        if r < (1.0 - 1e-12) * t / s:
            x = x + math.sqrt(t**2 - (s * r) ** 2) * tape.draw(here, there)
    return finish(x, schedule)


def _ratio(phi: Callable[[float], float], s: float, t: float) -> float:
    """phi(t) / phi(s), at most t / s: no step can take noise away faster than the ODE."""
    at_s, at_t = phi(s), phi(t)
    if not 0.0 < at_t <= at_s * t / s * (1.0 + 1e-12) < math.inf:
        raise ValueError(
            f"er_sde: noise_scaler(s) / s must be above 0 and must not fall as s grows; it does from {t:.4g} to {s:.4g}"
        )
    return at_t / at_s


def _corrections(past: list[tuple[Linear, float]], s: float, t: float, phi: Callable[[float], float]) -> Linear:
    """The terms in D' and D'' of a step from noise s to t."""
    if len(past) == 1:
        return 0.0 * past[0][0]
    width = (s - t) / POINTS
    at = [t + i * width for i in range(POINTS)]
    slope = _slope(*past[:2])
    term = (t - s + phi(t) * width * sum(1.0 / phi(u) for u in at)) * slope
    if len(past) == 2:
        return term
    bend = (slope - _slope(*past[1:])) / ((s - past[2][1]) / 2.0)
    return term + ((t - s) ** 2 / 2.0 + phi(t) * width * sum((u - s) / phi(u) for u in at)) * bend


def _slope(new: tuple[Linear, float], old: tuple[Linear, float]) -> Linear:
    return (new[0] - old[0]) / (new[1] - old[1])
