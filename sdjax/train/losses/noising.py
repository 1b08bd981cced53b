"""Noising: the noise that is put on a training picture, and what of it the network is asked for.

    e = n                                              n ~ N(0, 1) for every element                        (1)
    e = n + s m                                        m ~ N(0, 1) for every channel: offset noise           (2)
    e = (n + sum_i d^i up(n_i)) / std                  n_i smaller and smaller grids: pyramid noise          (3)
    x = alpha x_0 + sigma (e + p n')                   n' ~ N(0, 1): input perturbation                      (4)

The target knows of e, not of n'. (2), by Nicholas Guttenberg (2023, "Diffusion with offset noise"), lets a model move a
picture's mean, which white noise leaves readable to the end. s may be drawn anew for each picture, from 0 to s, and may
grow with the picture's own mean mu of a channel, s + a |mu|. (3), by the same, goes on to every scale: n_i is r^i times
smaller than the picture, r from 2 to 4, brought to its size bilinearly; no further level follows one of a single row
or column; std is that of all elements. (4) is Ning et al. 2023 (arXiv:2301.11706), p = 0.1.

Every draw is a picture's own, from its key, and so is (3)'s std and r: a picture's noise does not depend on the others
of its batch, as it does in kohya's trainer.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sdjax.train.objective import standard_normal

# Of a picture's draws, see `objective.standard_normal`: the names of those that this file makes.
NOISE, OFFSET, OFFSET_STRENGTH, PYRAMID, PERTURBATION = 0, 3, 4, 5, 6


@dataclass(frozen=True)
class Noising:
    """Equations 1 to 4.

    Attributes:
      offset: s of equation 2, 0 to 1; 0 is none. offset_random: whether each picture's s is drawn from 0 to s.
      offset_adaptive: a of equation 2; s + a |mu| is no less than 0.
      pyramid: how many levels i = 0, 1, .. equation 3 has, 0 to 10; 0 is none. pyramid_discount: d, above 0 to 1.
      perturbation: p of equation 4, 0 to 1.
    """

    offset: float = 0.0
    offset_random: bool = False
    offset_adaptive: float = 0.0
    pyramid: int = 0
    pyramid_discount: float = 0.3
    perturbation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("offset", "perturbation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of the noise must lie between 0 and 1, not {getattr(self, name):g}")
        if not 0 <= self.pyramid <= 10:
            raise ValueError(f"pyramid noise has 0 to 10 levels, not {self.pyramid}")
        if not 0 < self.pyramid_discount <= 1:
            raise ValueError(f"pyramid_discount must lie above 0 and be at most 1, not {self.pyramid_discount:g}")
        if (self.offset_random or self.offset_adaptive) and not self.offset:
            raise ValueError("offset_random and offset_adaptive change the strength of offset noise: give offset too")

    def draw(self, keys: jax.Array, x_0: jax.Array) -> jax.Array:
        """e `b h w c` for latents x_0 `b h w c`, keys `b`."""
        e = standard_normal(keys, NOISE, x_0.shape[1:])
        if self.pyramid:
            e = jax.vmap(self._pyramid)(_folded(keys, PYRAMID), e)
        if self.offset:
            e = e + self._offset_strength(keys, x_0) * standard_normal(keys, OFFSET, (1, 1, x_0.shape[-1]))
        return e

    def perturbed(self, keys: jax.Array, e: jax.Array) -> jax.Array:
        """e + p n' of equation 4."""
        if not self.perturbation:
            return e
        return e + self.perturbation * standard_normal(keys, PERTURBATION, e.shape[1:])

    def _offset_strength(self, keys: jax.Array, x_0: jax.Array) -> jax.Array:
        """s, `b 1 1 1` or `b 1 1 c`."""
        s = jnp.full((len(keys), 1, 1, 1), self.offset)
        if self.offset_random:
            s = s * jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(_folded(keys, OFFSET_STRENGTH))
        if self.offset_adaptive:
            s = s + self.offset_adaptive * jnp.abs(jnp.mean(x_0, axis=(1, 2), keepdims=True))
        return jnp.maximum(s, 0.0)

    def _pyramid(self, key: jax.Array, n: jax.Array) -> jax.Array:
        """Equation 3 for one picture n `h w c`."""
        (height, width, c), found, further = n.shape, n, jnp.array(True)
        for i in range(self.pyramid):
            r_key, grid_key = jax.random.split(jax.random.fold_in(key, i))
            ratio = jax.random.uniform(r_key, minval=2.0, maxval=4.0) ** i
            h, w = (jnp.maximum(jnp.floor(side / ratio), 1.0) for side in (height, width))
            largest = (max(height >> i, 1), max(width >> i, 1), c)  # of the grids that r may ask for
            grid = jax.random.normal(grid_key, largest)
            rows, columns = _bilinear(h, largest[0], height), _bilinear(w, largest[1], width)
            level = jnp.einsum("yj,jkc,xk->yxc", rows, grid, columns, precision=jax.lax.Precision.HIGHEST)
            found = found + jnp.where(further, self.pyramid_discount**i, 0.0) * level
            further &= (h > 1) & (w > 1)
        return found / jnp.std(found, ddof=1)


def _bilinear(size: jax.Array, most: int, to: int) -> jax.Array:
    """The matrix `to most` that brings the first `size` of `most` samples to `to`, pixel centres as torch has them."""
    at = jnp.clip((jnp.arange(to) + 0.5) * size / to - 0.5, 0.0, size - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - jnp.arange(most)))


def _folded(keys: jax.Array, name: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, name))(keys)
