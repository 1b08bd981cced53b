"""The DDIM family: go to the predicted picture and noise it again, partly with the old noise, partly with fresh.

The prediction D splits x = alpha x0 + sigma e into a picture and a noise direction, which a step from level
(alpha, sigma) to (alpha', sigma') puts together anew:
    e = (x - alpha D) / sigma                                                                          (1)
    x' = alpha' D + sqrt(sigma'^2 - f^2) e + f n,     n ~ N(0, 1)                                      (2)
The share f of fresh noise is free, for x' has the right noise level at any f, 0 .. sigma':
    f = 0                                           DDIM, and run upwards its inverse
    f = (sigma' / sigma) sqrt(1 - (alpha / alpha')^2)    DDPM: the exact posterior of x' given x and D (3)
`eta` of DDIM scales f between the two. (2) is exact while D stays the same, so the error of a run is that D
changes within a step: first order.
"""

import math

from sdjax.diffusion.bounds import check_number
from sdjax.diffusion.noise import Level
from sdjax.diffusion.spacing import Schedule
from sdjax.diffusion.table import Linear, Tape

SMALL = 1e-3  # sigma below every training level
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def ddim(tape: Tape, schedule: Schedule, *, eta: float = 0.0) -> Linear:
    """DDIM, Song et al. 2020, arXiv:2010.02502, equations 12 and 16.

    `eta`, 0 .. 1: share of fresh noise, from none to as much as DDPM's.

    A bound on D leaves the noise direction alone: that is taken from the unclipped D, as in diffusers.
    """
    eta = check_number("eta", eta, 0.0, 1.0)
    x = tape.x_T
    for here, there in schedule.steps:
        denoised = tape.denoise(x, here)
        direction = (x - here.alpha * denoised) / here.sigma
        clipped = tape.clip(denoised)
        fresh = eta * _posterior_deviation(here, there)
        x = there.alpha * clipped + math.sqrt(there.sigma**2 - fresh**2) * direction
        if eta:  # one draw per step even where its weight is 0, so that draw k always belongs to step k
            x = x + fresh * tape.draw(here, there)
    return x


def ddim_inverse(tape: Tape, schedule: Schedule) -> Linear:
    """DDIM run upwards, from clean latents to the noise that DDIM makes them of.

    x_T is the clean latents here, and the result lies at the noisiest level. Song et al. 2020, arXiv:2010.02502,
    section 4.3: equation 13 with its time reversed. Each step tells the network the timestep that it goes to, the one
    that DDIM asks at on its way back, but shows it x before the step, so the way back misses by the method's order.

    Raises:
      ValueError: a network that predicts the picture, at a start without any noise: no noise follows from it.
    """
    x = tape.x_T
    for here, there in schedule.steps:
        if here.sigma == 0.0:
            x = _first_noise(tape, x, there)
            continue
        denoised = tape.denoise(x, Level(here.alpha, here.sigma, there.t))
        direction = (x - here.alpha * denoised) / here.sigma
        x = there.alpha * tape.clip(denoised) + there.sigma * direction
    return x


def _first_noise(tape: Tape, x: Linear, there: Level) -> Linear:
    """From exactly clean latents to `there`: D is x itself, so equation 1 is 0 / 0 and the network names the noise."""
    if tape.prediction == "sample":
        raise ValueError(
            "ddim_inverse starts at exactly clean latents, where a prediction of the picture says nothing about the "
            "noise; set set_alpha_to_one to false, so that it starts at the first training level"
        )
    tape.inexact = tape.inexact or "the first step takes all its noise from the network's output at clean latents"
    raw = tape.raw(tape.denoise(x, there), x, there)  # at alpha = 1, raw is the noise: of epsilon and of v
    return there.alpha * tape.clip(x) + there.sigma * raw


def ddpm(tape: Tape, schedule: Schedule, *, variance_type: str = "fixed_small") -> Linear:
    """DDPM's ancestral sampling, Ho et al. 2020, arXiv:2006.11239, equations 6, 7 and 11.

    variance_type "fixed_small" draws from the exact posterior (equation 3 here, the paper's beta-tilde),
    "fixed_large" with the variance 1 - (alpha / alpha')^2 of the forward process, which is more than the levels say,
    and leaves some noise in the result. The endings "_log" say how diffusers computes them.

    A bound on D holds only the picture's share of the mean, not x's own, as in diffusers.

    Raises:
      ValueError: a variance that the network would have to predict.
    """
    if variance_type not in VARIANCES:
        raise ValueError(
            f"variance_type {variance_type!r} is not supported (learned variances need a network that predicts them); "
            f"known: {', '.join(VARIANCES)}"
        )
    large = variance_type.startswith("fixed_large")
    if large:
        tape.inexact = tape.inexact or "fixed_large renews more noise than it takes away"
    x = tape.x_T
    for here, there in schedule.steps:
        denoised = tape.clip(tape.denoise(x, here))
        kept = (here.alpha / there.alpha) ** 2
        lost = _lost(here, there)
        mean = there.alpha * lost * denoised + math.sqrt(kept) * there.sigma**2 * x
        x = mean / here.sigma**2
        fresh = math.sqrt(lost) if large else _posterior_deviation(here, there)
        if fresh and round(here.t) > 0:  # timestep 0 draws nothing, whatever the variance
            x = x + fresh * tape.draw(here, there)
    return x


def _posterior_deviation(here: Level, there: Level) -> float:
    """f of equation 3."""
    return math.sqrt((there.sigma / here.sigma) ** 2 * max(0.0, _lost(here, there)))


def _lost(here: Level, there: Level) -> float:
    """1 - (alpha / alpha')^2; by the noise where that is so small that 1 swallows it."""
    if here.sigma < SMALL:
        return (here.sigma**2 - there.sigma**2) / there.alpha**2
    return 1.0 - (here.alpha / there.alpha) ** 2
