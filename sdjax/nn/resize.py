"""Resizing as torch does it (`torch.nn.functional.interpolate` without antialiasing), which `jax.image.resize` is not.

Output pixel i of n looks at the place s(i) of the m input pixels,

    s(i) = (i + 1/2) m / n - 1/2,        or with corners aligned        s(i) = i (m - 1) / (n - 1),              (1)

and takes what lies around it with the weights of its distance t:
    linear    1 - |t|                       for |t| < 1, places before the first pixel counting as the first       (2)
    cubic     (a + 2) |t|^3 - (a + 3) |t|^2 + 1             for |t| <= 1,
              a |t|^3 - 5 a |t|^2 + 8 a |t| - 4 a           for |t| < 2, with a = -3/4; jax has a = -1/2           (3)
              (Keys 1981, IEEE TASSP 29(6), equation 15), pixels beyond the edge being those of the edge.
Rows and columns are weighed one after the other, each by a matrix made on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CUBIC = -0.75  # a of equation 3


def bilinear(x: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Equation 2: `b h w c` -> `b size[0] size[1] c`."""
    return _apply(x, [linear_weights(m, n, align_corners) for m, n in zip(x.shape[1:3], size, strict=True)])


def bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Equation 3: `b h w c` -> `b size[0] size[1] c`; may go beyond the values of x."""
    return _apply(x, [cubic_weights(m, n) for m, n in zip(x.shape[1:3], size, strict=True)])


def linear_weights(m: int, n: int, align_corners: bool = False) -> np.ndarray:
    """Equation 2 as a matrix [n, m], float64."""
    if align_corners:
        place = np.arange(n) * ((m - 1) / max(n - 1, 1))
    else:
        place = np.maximum((np.arange(n) + 0.5) * m / n - 0.5, 0)
    first = np.minimum(np.floor(place).astype(int), m - 1)
    return _matrix(m, [(first, 1 - (place - first)), (first + 1, place - first)])


def cubic_weights(m: int, n: int) -> np.ndarray:
    """Equation 3 as a matrix [n, m], float64."""
    place = (np.arange(n) + 0.5) * m / n - 0.5
    first = np.floor(place).astype(int)
    taps = [first + k for k in (-1, 0, 1, 2)]
    return _matrix(m, [(tap, _cubic(np.abs(place - tap))) for tap in taps])


def _cubic(t: np.ndarray) -> np.ndarray:
    a = CUBIC
    near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, a * (((t - 5) * t + 8) * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _matrix(m: int, taps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[n, m] from (pixel, weight) of each output pixel, pixels beyond the edges being those of the edge."""
    made = np.zeros((len(taps[0][0]), m))
    for pixel, weight in taps:
        np.add.at(made, (np.arange(len(pixel)), np.clip(pixel, 0, m - 1)), weight)
    return made


def _apply(x: jax.Array, weights: list[np.ndarray]) -> jax.Array:
    rows, columns = (jnp.asarray(one, x.dtype) for one in weights)
    x = jnp.einsum("nh,bhwc->bnwc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("nw,bhwc->bhnc", columns, x, precision=lax.Precision.HIGHEST)
