"""A picture cut into windows that overlap, and moments of the whole added up from its parts.

Two parts A and B of a picture, of n numbers each with deviations' squares S, add up to

    mean = mean_A + d n_B / n,    S = S_A + S_B + d^2 n_A n_B / n,    d = mean_B - mean_A,    n = n_A + n_B      (1)

(Chan, Golub & LeVeque 1983, The American Statistician 37(3), equation 2.1), which loses no digits where the mean is
large.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Sums = tuple[jax.Array, jax.Array, jax.Array]  # of equation 1: n, and `b g` each the mean and S


@dataclass(frozen=True)
class Axis:
    """An axis of `size` pixels, in windows: a core each and a margin around it.

    All windows are of one size and lie within the picture; so do the cores, the last of which therefore repeats
    some of what the one before it has.
    """

    size: int
    core: int
    margin: int

    @classmethod
    def cut(cls, size: int, most: int, margin: int) -> "Axis":
        """In as few cores of at most `most` pixels as there can be, all of them as small as that allows."""
        return cls(size, -(-size // -(-size // most)), margin)

    @property
    def window(self) -> int:
        """Pixels of a window."""
        return min(self.size, self.core + 2 * self.margin)

    def places(self) -> np.ndarray:
        """int32 [windows, 3]: where each begins, where its core does within it, how much of the core is repeated."""
        first = np.arange(0, self.size, self.core)
        core = np.minimum(first, self.size - self.core)
        window = np.clip(first - self.margin, 0, self.size - self.window)
        return np.stack([window, core - window, first - core], axis=-1).astype(np.int32)


@dataclass(frozen=True)
class Grid:
    """Both axes of a picture that is cut. Arrays of any whole multiple of its pixels are cut alike.

    A place is a row of `places`: where a window begins, where its core does within it, how much is repeated.
    """

    rows: Axis
    columns: Axis

    def places(self) -> jax.Array:
        """int32 [windows, 3, 2], the last axis being rows and columns."""
        both = itertools.product(self.rows.places(), self.columns.places())
        return jnp.asarray(np.stack([np.stack(place, axis=-1) for place in both]))

    def window(self, x: jax.Array, place: jax.Array) -> jax.Array:
        """The window of the whole picture x `b h w c`."""
        size = (self.rows.window, self.columns.window)
        return _piece(x, place[0], size, x.shape[1] // self.rows.size)

    def core(self, y: jax.Array, place: jax.Array) -> jax.Array:
        """The core of a window's y `b h w c`."""
        return _piece(y, place[1], (self.rows.core, self.columns.core), y.shape[1] // self.rows.window)

    def added(self, sums: Sums, y: jax.Array, place: jax.Array) -> Sums:
        """Equation 1 with the core of a window's y `b h w c`, but for what is repeated of it."""
        return _added(sums, self.core(y, place), y.shape[1] // self.rows.window * place[2])

    def written(self, out: jax.Array, y: jax.Array, place: jax.Array) -> jax.Array:
        """The whole picture `out` with the core of a window's y where it belongs."""
        row, column = out.shape[1] // self.rows.size * (place[0] + place[1])
        return lax.dynamic_update_slice(out, self.core(y, place), (0, row, column, 0))


def _piece(x: jax.Array, start: jax.Array, size: tuple[int, ...], scale: int) -> jax.Array:
    """`size` of x `b h w c` from `start` on, both counted in `scale` pixels."""
    row, column = scale * start
    return lax.dynamic_slice(x, (0, row, column, 0), (x.shape[0], *(scale * n for n in size), x.shape[-1]))


def _added(sums: Sums, x: jax.Array, repeated: jax.Array) -> Sums:
    """Equation 1: a part `b h w c` of a picture, but for its first `repeated` rows and columns."""
    rows, columns = (jnp.arange(n) >= first for n, first in zip(x.shape[1:3], repeated, strict=True))
    new = (rows[:, None] & columns)[:, :, None, None]
    count, mean, squares = sums
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], mean.shape[-1], -1)
    more = jnp.sum(new, dtype=jnp.float32) * grouped.shape[-1]
    its_mean = jnp.sum(jnp.where(new, grouped, 0), axis=(1, 2, 4)) / more
    its_squares = jnp.sum(jnp.where(new, jnp.square(grouped - its_mean[:, None, None, :, None]), 0), axis=(1, 2, 4))
    total, apart = count + more, its_mean - mean
    return total, mean + apart * more / total, squares + its_squares + jnp.square(apart) * count * more / total
