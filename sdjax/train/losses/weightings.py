"""Weightings: how much the squared error of a picture counts at its noise level.

On the error of the clean latents x_0, with SNR = alpha^2 / sigma^2:
    min_snr        min(SNR, gamma)                     Hang et al. 2023, arXiv:2303.09556, gamma 5            (1)
    soft_min_snr   SNR gamma / (SNR + gamma)           the same without a corner (Crowson et al. 2024,
                                                       arXiv:2401.11605, for gamma = sigma_data^-2)           (2)
    edm            SNR + sigma_data^-2                 Karras et al. 2022, arXiv:2206.00364, table 1          (3)
A network that answers otherwise makes an error of its answer, which is one of x_0 times c (`predictions`): its weight
is (1) to (3) times c. For a velocity (1) is min(SNR, gamma) / (SNR + 1), not min(SNR + 1, gamma) / (SNR + 1), which
diffusers had for a time (#5654): that one is 1 wherever noise prevails, and stands here under a name of its own.

On the error of the answer itself:
    uniform           1                                                                                       (4)
    p2                (1 + SNR)^-gamma, of the noise   Choi et al. 2022, arXiv:2204.00227, equation 8, k = 1  (5)
    debiased          min(SNR, limit)^-1/2 of the noise (Yu et al. 2023, arXiv:2310.08442), and
                      1 / (min(SNR, limit) + 1) of the velocity, as kohya has it                              (6)
    velocity_clipped  min(1, gamma sigma^2), of the velocity: what makes a picture's layout counts in full    (7)
    velocity_snr      SNR / (SNR + 1) = alpha^2 of the velocity, SNR no more than the limit; kohya            (8)
    sigma_sqrt        sigma^-2, of flow matching                                                              (9)
    cosmap            2 / (pi (1 - 2 sigma + 2 sigma^2)), of flow matching; both Esser et al. 2024           (10)

Weights differ in their mean over t: of min_snr it is 0.917 for the noise and 0.294 for the velocity. So losses of two
weightings are not comparable; `validation` is. A new one is a function here and its line in `KINDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax.core.errors import unknown
from sdjax.train.architecture import PREDICTIONS
from sdjax.train.losses.levels import Level
from sdjax.train.losses.predictions import as_clean_error

Weight = Callable[[Level, float], jax.Array]  # levels of b pictures and the kind's number -> `b`


def uniform(level: Level, number: float) -> jax.Array:
    """Equation 4."""
    return jnp.ones_like(level.sigma)


def min_snr(level: Level, gamma: float) -> jax.Array:
    """Equation 1."""
    return jnp.minimum(level.snr, gamma)


def soft_min_snr(level: Level, gamma: float) -> jax.Array:
    """Equation 2, as it is finite for SNR 0 and infinity."""
    return gamma / (1 + gamma / level.snr)


def edm(level: Level, sigma_data: float) -> jax.Array:
    """Equation 3."""
    return level.snr + sigma_data**-2


def p2(level: Level, gamma: float) -> jax.Array:
    """Equation 5."""
    return (1 + level.snr) ** -gamma


def debiased_noise(level: Level, limit: float) -> jax.Array:
    """Equation 6 for epsilon."""
    return jax.lax.rsqrt(jnp.minimum(level.snr, limit))


def debiased_velocity(level: Level, limit: float) -> jax.Array:
    """Equation 6 for v_prediction."""
    return 1 / (jnp.minimum(level.snr, limit) + 1)


def velocity_clipped(level: Level, gamma: float) -> jax.Array:
    """Equation 7; sigma^2 = 1 / (SNR + 1), so it is min(SNR + 1, gamma) / (SNR + 1)."""
    return jnp.minimum(1.0, gamma * jnp.square(level.sigma))


def velocity_snr(level: Level, limit: float) -> jax.Array:
    """Equation 8."""
    snr = jnp.minimum(level.snr, limit)
    return snr / (snr + 1)


def sigma_sqrt(level: Level, number: float) -> jax.Array:
    """Equation 9."""
    return 1 / jnp.square(level.sigma)


def cosmap(level: Level, number: float) -> jax.Array:
    """Equation 10."""
    return 2 / (jnp.pi * (1 - 2 * level.sigma + 2 * jnp.square(level.sigma)))


def of_clean(weight: Weight) -> dict[str, Weight]:
    """A weight of the clean latents' error as one of each prediction's own."""

    def own(prediction: str, level: Level, number: float) -> jax.Array:
        return weight(level, number) * as_clean_error(prediction, level)

    return {prediction: partial(own, prediction) for prediction in PREDICTIONS}


class Kind(NamedTuple):
    """A weighting: its formula for each prediction that it is for, and its number where none is given."""

    weights: Mapping[str, Weight]
    number: float | None = None


KINDS: dict[str, Kind] = {
    "uniform": Kind(dict.fromkeys(PREDICTIONS, uniform)),
    "min_snr": Kind(of_clean(min_snr), 5.0),
    "soft_min_snr": Kind(of_clean(soft_min_snr), 5.0),
    "edm": Kind(of_clean(edm), 1.0),
    "p2": Kind({"epsilon": p2}, 1.0),
    "debiased": Kind({"epsilon": debiased_noise, "v_prediction": debiased_velocity}, 1000.0),
    "velocity_clipped": Kind({"v_prediction": velocity_clipped}, 5.0),
    "velocity_snr": Kind({"v_prediction": velocity_snr}, 1000.0),
    "sigma_sqrt": Kind({"flow": sigma_sqrt}),
    "cosmap": Kind({"flow": cosmap}),
}


@dataclass(frozen=True)
class Weighting:
    """A weighting by its name.

    Attributes:
      kind: one of KINDS.
      number: its gamma, sigma_data or limit, above 0; None is the published one.
    """

    kind: str = "uniform"
    number: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown(f"weighting {self.kind!r} is unknown", self.kind, KINDS))
        if self.number is None:
            return
        if KINDS[self.kind].number is None:
            raise ValueError(f"weighting {self.kind!r} takes no number, and {self.number:g} was given")
        if not self.number > 0:
            raise ValueError(f"weighting {self.kind!r}: its number must be above 0, not {self.number:g}")

    def check(self, prediction: str) -> None:
        """Raises ValueError for a prediction that this weighting has no formula for."""
        known = KINDS[self.kind].weights
        if prediction not in known:
            fit = ", ".join(name for name, kind in KINDS.items() if prediction in kind.weights)
            raise ValueError(
                f"weighting {self.kind!r} is one of {' and '.join(known)}, and this model's prediction is "
                f"{prediction!r}; for that there are {fit}"
            )

    def __call__(self, prediction: str, level: Level) -> jax.Array:
        """The weights `b` of b pictures at their levels, float32."""
        kind = KINDS[self.kind]
        return kind.weights[prediction](level, self.number or kind.number or 0.0)
