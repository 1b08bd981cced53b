"""Timesteps: at which noise levels the pictures of a batch are shown.

A timestep is a share q of all of them: a uniform number u of [0, 1) taken through the quantile function of a density.

    q = u                                                           Uniform                                 (1)
    q = sigmoid(m + s Phi^-1(u))                                    LogitNormal                             (2)
    q = 1 - u - s (cos^2(pi u / 2) - 1 + u)                         Mode                                    (3)
    density k times as high from q_0 to q_1 as elsewhere            Biased                                  (4)
    t = floor(q T), or where it is continuous q (T - 1)                                                     (5)

(2) and (3) are Esser et al. 2024 (arXiv:2403.03206, section 3.1). The loss is not divided by the density: more often
is heavier. Of flow matching q may be shifted towards noise, as large pictures need it, q' = s q / (1 + (s - 1) q) (the
same, equation 23).

Stratified over a batch of b, the i-th picture has u = (pi(i) + u_i) / b with pi a permutation: every level is seen as
often as a batch can (Kingma et al. 2021, arXiv:2107.00630, appendix I, and k-diffusion). The mean over 64 pictures of
min-SNR's weight of the velocity varies 24 times less so. pi is drawn for every step: a place in the batch may be a
bucket's, a class's or a device's, and must not be a noise level's too. It is of the batch of a whole step, however that
is computed.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

TIMESTEP = 2  # of a picture's draws: u
PERMUTATION = 2**32 - 1  # of a step's key, of which the pictures have the numbers from 0
LEAST = 1e-5  # how near q comes to 0 and 1, where flow matching has no noise or no picture


class Density(Protocol):
    """A frozen dataclass: how often each share of the timesteps comes."""

    def quantile(self, u: jax.Array) -> jax.Array:
        """q for u, both `b` of [0, 1]."""


@dataclass(frozen=True)
class Uniform:
    """Equation 1."""

    def quantile(self, u: jax.Array) -> jax.Array:
        """See `Density`."""
        return u


@dataclass(frozen=True)
class LogitNormal:
    """Equation 2: m below 0 for less noise; s is the spread."""

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the scale of a logit-normal density must be above 0, not {self.scale:g}")

    def quantile(self, u: jax.Array) -> jax.Array:
        """See `Density`."""
        return jax.nn.sigmoid(self.mean + self.scale * ndtri(u))


@dataclass(frozen=True)
class Mode:
    """Equation 3, for s of -1 to 2 / (pi - 2)."""

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (jnp.pi - 2):
            raise ValueError(f"the scale of a mode density must lie between -1 and 1.751, not {self.scale:g}")

    def quantile(self, u: jax.Array) -> jax.Array:
        """See `Density`."""
        return 1 - u - self.scale * (jnp.square(jnp.cos(jnp.pi * u / 2)) - 1 + u)


@dataclass(frozen=True)
class Biased:
    """Equation 4: start is q_0, stop q_1, multiplier k, above 0. `later` and `earlier` make the two common ones."""

    start: float
    stop: float
    multiplier: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"a bias is from one share of the timesteps to a larger one, not {self.start:g} to {self.stop:g}"
            )
        if not self.multiplier > 0:
            raise ValueError(f"the multiplier of a bias must be above 0, not {self.multiplier:g}")

    def quantile(self, u: jax.Array) -> jax.Array:
        """See `Density`."""
        before, within = self.start, self.multiplier * (self.stop - self.start)
        total = before + within + 1 - self.stop
        masses, shares = [0.0, before, before + within, total], [0.0, self.start, self.stop, 1.0]
        return jnp.interp(u * total, jnp.array(masses), jnp.array(shares))


def later(portion: float = 0.25, multiplier: float = 2.0) -> Biased:
    """The noisiest portion of the timesteps more often."""
    return Biased(1 - portion, 1.0, multiplier)


def earlier(portion: float = 0.25, multiplier: float = 2.0) -> Biased:
    """The least noisy portion of the timesteps more often."""
    return Biased(0.0, portion, multiplier)


@dataclass(frozen=True)
class Timesteps:
    """Equation 5.

    Attributes:
      density: how often each level comes.
      stratified: over the batch of a step; else every picture's u is its own alone.
      continuous: whether timesteps lie between the trained levels too; those of flow matching always do.
      shift: of flow matching, above 0; 1 is none.
    """

    density: Density = Uniform()
    stratified: bool = True
    continuous: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, not {self.shift:g}")

    def draw(self, key: jax.Array, keys: jax.Array, total: int) -> jax.Array:
        """Timesteps `b` of `total`: int32, or float32 where continuous.

        key: of the step. keys: of its pictures, `b`.
        """
        q = self._share(key, keys)
        if self.continuous:
            return q * (total - 1)
        return jnp.minimum((q * total).astype(jnp.int32), total - 1)  # q may be rounded up to 1

    def flow(self, key: jax.Array, keys: jax.Array, total: int) -> jax.Array:
        """Timesteps `b` of flow matching, float32, above 0 and below `total`."""
        q = jnp.clip(self._share(key, keys), LEAST, 1 - LEAST)
        return total * self.shift * q / (1 + (self.shift - 1) * q)

    def _share(self, key: jax.Array, keys: jax.Array) -> jax.Array:
        """q, `b`."""
        u = jax.vmap(lambda one: jax.random.uniform(jax.random.fold_in(one, TIMESTEP)))(keys)
        if self.stratified:
            b = len(keys)
            u = (jax.random.permutation(jax.random.fold_in(key, PERMUTATION), b) + u) / b
        return self.density.quantile(u)
