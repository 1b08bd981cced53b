"""Exponential integrators: what the DPM-Solver family has in common.

In lambda = log(alpha / sigma) the linear part of the diffusion ODE (eta = 0) or SDE is solved exactly; only the
network's prediction, a function of s = the share of the step done, 0 .. 1, is approximated. A step of length
h = lambda_t - lambda_s is, by the predicted clean latents D or by the predicted noise e,
    x_t = (sigma_t / sigma_s) e^(-eta h) x_s + alpha_t I[D] + sigma_t sqrt(1 - e^(-2 eta h)) n,  z = -(1 + eta) h  (1)
    x_t = (alpha_t / alpha_s) x_s + sigma_t I[e],                                                z = h             (2)
    I[f] = -z int_0^1 e^(z (1 - s)) f(s) ds                                                                        (3)
(2: DPM-Solver, arXiv:2206.00927, proposition 3.1; 1: DPM-Solver++, arXiv:2211.01095, proposition 4.1; its noise n:
SA-Solver, arXiv:2309.05019, with eta = tau^2). For a power of s, (3) is
    J_0 = 1 - e^z,    J_k = I[s^k] = 1 + (k / z) J_(k-1)                                                           (4)
and for the polynomial through the predictions f_i at the nodes s_i it is sum_i w_i f_i with
    sum_i w_i s_i^k = J_k,   k = 0 .. len(nodes) - 1.                                                              (5)
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from sdjax.core.short import short
from sdjax.diffusion.bounds import check_whole
from sdjax.diffusion.noise import Level
from sdjax.diffusion.table import Linear, Tape

Past = Sequence[tuple[Linear, Level]]  # predictions and where they were made, newest first


def step_length(here: Level, there: Level) -> float:
    """h in log signal-to-noise ratio; infinite where `there` is clean."""
    return there.log_snr - here.log_snr


def exponent(here: Level, there: Level, data: bool = True, eta: float = 0.0) -> float:
    """z of equation 1 (`data`) or 2."""
    h = step_length(here, there)
    return -(1.0 + eta) * h if data else h


def predict(tape: Tape, x: Linear, here: Level, data: bool = True) -> Linear:
    """The network's clean latents (`data`) or noise, after whatever bound the config sets on the clean latents."""
    denoised = tape.clip(tape.denoise(x, here))
    return denoised if data else (x - here.alpha * denoised) / here.sigma


def advance(x: Linear, here: Level, there: Level, integral: Linear, data: bool = True, eta: float = 0.0) -> Linear:
    """Equation 1 without its noise (`data`) or equation 2, given I[f]."""
    if data:
        return (there.sigma / here.sigma) * (there.ve / here.ve) ** eta * x + there.alpha * integral
    return (there.alpha / here.alpha) * x + there.sigma * integral


def renewed(tape: Tape, here: Level, there: Level, eta: float) -> Linear:
    """The noise of equation 1."""
    weight = there.sigma * math.sqrt(max(0.0, 1.0 - (there.ve / here.ve) ** (2.0 * eta)))
    return noise(tape, here, there, weight)


def noise(tape: Tape, here: Level, there: Level, weight: float) -> Linear:
    """The renewed noise of a step, times `weight`; nothing is drawn where that is zero."""
    return weight * tape.draw(here, there) if weight else 0.0 * tape.x_T


def moments(z: float, count: int) -> list[float]:
    """J_0 .. J_(count - 1) of equation 4; by their power series where the recursion would cancel."""
    if abs(z) < 1.0:
        return [-z * sum(z**n * math.factorial(k) / math.factorial(n + k + 1) for n in range(20)) for k in range(count)]
    found = [-math.expm1(z)]
    for k in range(1, count):
        found.append(1.0 + k / z * found[-1])
    return found


def polynomial(past: Past, here: Level, there: Level, z: float, line: float | None = None) -> Linear:
    """I[f] of the polynomial through predictions at any levels, equation 5, for a step from `here` to `there`.

    `line`: what takes the place of J_1 where there are two predictions, for methods that approximate it.
    """
    h = step_length(here, there)
    if h == 0.0:  # where a schedule visits its last level twice
        return 0.0 * past[0][0]
    integrals = moments(z, len(past))
    if len(past) == 2 and line is not None:
        integrals[1] = line
    nodes = [(level.log_snr - here.log_snr) / h for _, level in past]
    weights = np.linalg.solve(np.vander(nodes, increasing=True).T, integrals)
    return combine(weights, [f for f, _ in past])


def combine(weights: Iterable[float], forms: Iterable[Linear]) -> Linear:
    """sum_i w_i f_i."""
    first, *terms = (w * f for w, f in zip(weights, forms, strict=True))
    return sum(terms, start=first)


def check_order(sampler: str, option: str, order: int, highest: int = 3) -> int:
    """Return `order` if it is a whole number in 1 .. highest; otherwise raise ValueError."""
    return check_whole(f"{sampler}: {option}", order, 1, highest)


def check_type(sampler: str, given: str, own: Sequence[str]) -> str:
    """Which of `own` a config's solver_type means: one of another class's names means the first, as in diffusers."""
    if given in own:
        return given
    if given in ("midpoint", "heun", "bh1", "bh2", "logrho"):
        return own[0]
    raise ValueError(f"{sampler}: solver_type must be {' or '.join(map(repr, own))}, not {short(given)}")


def check_end(sampler: str, end: Level, order: int, data: bool = True) -> None:
    """Raise ValueError where a last step, of that order, cannot end clean, because there h is infinite."""
    if end.sigma == 0.0 and not data:
        raise ValueError(
            f"{sampler} integrates the predicted noise over log SNR, which is infinite at sigma 0; set "
            "final_sigmas_type to 'sigma_min', end your sigmas above 0, or take sampler dpmpp_2m"
        )
    if end.sigma == 0.0 and order > 1:
        raise ValueError(
            f"{sampler} cannot end at sigma 0 with a last step of order {order}; set lower_order_final to true, or "
            "final_sigmas_type to 'sigma_min'"
        )
