"""Noise levels by formula: N of them, noisiest first, as variance-exploding noise `ve` in float64.

With low and high the ends of the range, and i = 0 .. N - 1:
  karras            (high^(1/rho) + i/(N-1) (low^(1/rho) - high^(1/rho)))^rho, rho = 7               (1)
                    Karras et al. 2022 (arXiv:2206.00364), eq. 5
  exponential, lu   high^(1 - i/(N-1)) low^(i/(N-1)): even steps of log-SNR                          (2)
                    Lu et al. 2022 (arXiv:2206.00927); k-diffusion get_sigmas_exponential
  polyexponential   log ve falls as (1 - i/(N-1))^rho, rho = 1; k-diffusion get_sigmas_polyexponential
  beta              low + q(1 - i/(N-1)) (high - low), q the quantile of Beta(0.6, 0.6)              (3)
                    after Lee et al. 2024 (arXiv:2407.12173); in noise, as diffusers and A1111 have it
  kl_optimal        tan((1 - i/(N-1)) arctan(high) + i/(N-1) arctan(low))                            (4)
                    Sabour et al. 2024 (arXiv:2404.14507), the optimum for Gaussian data
  laplace           high >= exp(-b sign(1/2 - y) log(1 - 2 |1/2 - y|)) >= low, y = i/(N-1), b = 1/2
                    Hang et al. 2024 (arXiv:2407.03297); ComfyUI get_sigmas_laplace
  linear_quadratic  high (1 - x_i); x linear up to 0.025 for the first N/2, then a parabola to 1     (5)
                    after Polyak et al. 2024 (arXiv:2410.13720); ComfyUI linear_quadratic_schedule
Others choose timesteps t, between which log ve is linear:
  normal            even from T-1 to 0, both visited; sgm_uniform: even from T-1, the 0 left out
  simple            every (T/N)-th training level down from the noisiest
  ddim_uniform      every floor(T/N)-th up from t = 1
  beta_timesteps    round(q(1 - i/N) (T-1)): the paper's own beta, and ComfyUI's
  ays, ays_sdxl     ten timesteps found by optimisation for SD 1.5 and SDXL (arXiv:2404.14507); log ve linear
                    between them for any other N
All but karras, exponential, lu, polyexponential and beta stand in ComfyUI comfy/samplers.py, comfy_extras/
nodes_custom_sampler.py and nodes_align_your_steps.py, most also in A1111 modules/sd_schedulers.py.
"""

import math
from collections.abc import Callable

import numpy as np

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import NoiseSchedule

# Published with the paper (research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html); in diffusers
# `AysSchedules`. ComfyUI's table holds the noise of just these timesteps, A1111's the same to three decimals.
AYS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
AYS_SDXL = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)


def karras(low: float, high: float, steps: int, rho: float | None = None) -> np.ndarray:
    """Equation 1."""
    rho = 7.0 if rho is None else rho
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Equation 2."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def polyexponential(low: float, high: float, steps: int, rho: float | None = None) -> np.ndarray:
    """Equation 2 for rho = 1; a larger rho goes faster through the noisy part."""
    ramp = np.linspace(1, 0, steps) ** (1.0 if rho is None else rho)
    return np.exp(math.log(low) + ramp * (math.log(high) - math.log(low)))


def beta(low: float, high: float, steps: int) -> np.ndarray:
    """Equation 3."""
    return low + beta_quantile(np.linspace(1, 0, steps)) * (high - low)


def kl_optimal(low: float, high: float, steps: int) -> np.ndarray:
    """Equation 4."""
    return np.tan(np.linspace(math.atan(high), math.atan(low), steps))


def laplace(low: float, high: float, steps: int) -> np.ndarray:
    """Quantiles of a Laplace density of log ve; 1e-5 keeps the logarithm finite at the ends."""
    side = np.linspace(0.5, -0.5, steps)
    return np.clip(np.exp(-0.5 * np.sign(side) * np.log(1 - 2 * abs(side) + 1e-5)), low, high)


def linear_quadratic(low: float, high: float, steps: int, threshold: float = 0.025) -> np.ndarray:
    """Equation 5: the parabola goes on with the value and the slope of the line, and reaches x = 1 at i = N."""
    linear = steps // 2
    if linear == 0:
        return np.array([high])
    slope, i = threshold / linear, np.arange(steps)
    curve = (1 - steps * slope) / (steps - linear) ** 2
    return high * (1 - slope * i - curve * np.maximum(i - linear, 0) ** 2)


def simple(total: int, steps: int) -> np.ndarray:
    """Whole timesteps, T-1 first."""
    return np.array([total - 1 - int(i * (total / steps)) for i in range(steps)], float)


def ddim_uniform(total: int, steps: int) -> np.ndarray:
    """Whole timesteps 1, 1 + stride, .. below T, descending; more than N of them where N does not divide T."""
    return np.arange(1, total, max(total // steps, 1), dtype=float)[::-1]


def beta_timesteps(total: int, steps: int) -> np.ndarray:
    """Whole timesteps; with many steps, some come twice."""
    return np.rint(beta_quantile(1 - np.arange(steps) / steps) * (total - 1))


def beta_quantile(p: np.ndarray, a: float = 0.6) -> np.ndarray:
    """x with I_x(a, a) = p, the quantile of the symmetric Beta(a, a), to 1e-14.

    For x <= 1/2 the incomplete beta function is x^a sum_n (1-a)_n x^n / (n! (a+n)) (DLMF 8.17.7), which loses
    half its remainder with every term; the other half is its mirror image. In y = x^a it is nearly straight,
    so that Newton's method needs few rounds.
    """
    n = np.arange(60)
    terms = np.cumprod(np.append(1.0, (1 - a + n[:-1]) / (1 + n[:-1]))) / (a + n)
    area = np.minimum(p, 1 - p) * math.gamma(a) ** 2 / math.gamma(2 * a)
    y = area * a
    for _ in range(12):
        x = y ** (1 / a)
        y = y - (y * (x[:, None] ** n @ terms) - area) * a * (1 - x) ** (1 - a)
    x = y ** (1 / a)
    return np.where(p > 0.5, 1 - x, x)


# (low, high, steps) -> ve, for the schedules that span a range of noise; karras and polyexponential also take rho.
RANGED: dict[str, Callable[..., np.ndarray]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "lu": exponential,
    "kl_optimal": kl_optimal,
    "laplace": laplace,
    "linear_quadratic": linear_quadratic,
}
# (T, steps) -> timesteps, for those that choose timesteps.
TIMED: dict[str, Callable[[int, int], np.ndarray]] = {
    "normal": lambda total, steps: np.linspace(total - 1, 0, steps),
    "sgm_uniform": lambda total, steps: np.linspace(total - 1, 0, steps + 1)[:-1],
    "simple": simple,
    "ddim_uniform": lambda total, steps: ddim_uniform(total, steps)[-steps:],
    "beta_timesteps": beta_timesteps,
}
TABLES = {"ays": AYS, "ays_sdxl": AYS_SDXL}
WITH_RHO = ("karras", "polyexponential")
RHO = (0.1, 1000.0)  # beyond, levels overflow, or all fall on the ends
SIGMA_SCHEDULES = (*RANGED, *TIMED, *TABLES)


def noise_levels(
    name: str, noise: NoiseSchedule, steps: int, rho: float | None = None, span: tuple[float, float] | None = None
) -> np.ndarray:
    """`ve` float64 [N], decreasing, of one of `SIGMA_SCHEDULES`.

    rho: of karras and polyexponential; None is their default. span: lowest and highest `ve` of those in `RANGED`;
    None is all training levels.

    Raises:
      ValueError: the schedule was made for another number of training levels.
    """
    if name in RANGED:
        low, high = span or (float(noise.ve[0]), float(noise.ve[-1]))
        return RANGED[name](low, high, steps, *(() if rho is None else (rho,)))
    if name in TIMED:
        return noise.at(TIMED[name](noise.total, steps))
    if noise.total != 1000:
        raise ValueError(f"schedule {name!r} is a table for 1000 training levels, and this model has {noise.total}")
    return log_linear(noise.ve[list(TABLES[name])], steps + 1)[:-1]


def check_rho(name: str, rho: float | None) -> float | None:
    """Return `rho`; raise ValueError where it is out of range, or the schedule of that name has none."""
    if rho is None:
        return None
    if name not in WITH_RHO:
        raise ValueError(f"schedule {name!r} has no rho; {' and '.join(WITH_RHO)} have")
    return check_number("rho", rho, *RHO)


def log_linear(ve: np.ndarray, count: int) -> np.ndarray:
    """A table of decreasing noise, brought to `count` entries: log ve is linear between them."""
    where = np.linspace(0, len(ve) - 1, count)
    return np.exp(np.interp(where, np.arange(len(ve)), np.log(ve)))
