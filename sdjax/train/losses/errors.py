"""Errors: how far off an answer is, element by element.

    squared     d^2                                                                                         (1)
    huber       2 c (sqrt(d^2 + c^2) - c)      d^2 where |d| is far below c, 2 c |d| far above              (2)
    smooth_l1   2 (sqrt(d^2 + c^2) - c)        d^2 / c, and 2 |d|                                           (3)

(2) is the pseudo-Huber loss, which pictures that do not belong pull on less (Song & Dhariwal 2023, arXiv:2310.14189,
equation 7; for diffusion Khrapov et al. 2024, arXiv:2403.16728). Its width c follows the noise level, as kohya has it:

    snr           c_t = (1 - c) / (1 + sigma_t / alpha_t)^2 + c      1 without noise, c in pure noise       (4)
    exponential   c_t = c^(t / T)                                                                           (5)
    constant      c_t = c                                                                                   (6)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.core.errors import unknown
from sdjax.train.losses.levels import Level

KINDS = ("squared", "huber", "smooth_l1")
WIDTHS = ("snr", "exponential", "constant")


def pseudo_huber(difference: jax.Array, c: jax.Array | float) -> jax.Array:
    """sqrt(d^2 + c^2) - c, without the difference of two nearly equal numbers."""
    square = jnp.square(difference)
    return square / (jnp.sqrt(square + jnp.square(c)) + c)


@dataclass(frozen=True)
class Error:
    """An error by its name.

    Attributes:
      kind: one of KINDS. c: of Huber's width, above 0 and at most 1. width: one of WIDTHS, how c_t follows the level.
    """

    kind: str = "squared"
    c: float = 0.1
    width: str = "snr"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown(f"error {self.kind!r} is unknown", self.kind, KINDS))
        if self.width not in WIDTHS:
            raise ValueError(unknown(f"width {self.width!r} of a Huber error is unknown", self.width, WIDTHS))
        if not 0 < self.c <= 1:
            raise ValueError(f"c of a Huber error must lie above 0 and be at most 1, not {self.c:g}")

    def __call__(self, difference: jax.Array, level: Level, share: jax.Array) -> jax.Array:
        """Equations 1 to 3 of differences `b h w c`, at the levels and the shares t / T of b pictures."""
        if self.kind == "squared":
            return jnp.square(difference)
        c = self.width_at(level, share).reshape(-1, *(1,) * (difference.ndim - 1))
        return 2 * pseudo_huber(difference, c) * (c if self.kind == "huber" else 1)

    def width_at(self, level: Level, share: jax.Array) -> jax.Array:
        """c_t, `b`."""
        if self.width == "snr":  # 1 / (1 + sigma / alpha), which is finite without any signal too
            return (1 - self.c) * jnp.square(level.alpha / (level.alpha + level.sigma)) + self.c
        return self.c**share if self.width == "exponential" else jnp.full_like(share, self.c)
