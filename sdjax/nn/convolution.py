"""Convolution over `b h w c`, and three identities that make it cheaper on a CPU: winograd.py, and two here.

A convolution is a product of the picture's patches with the kernel, both as matrices:

    y[b h w, o] = sum over (i, j, c) of  x[b, h + i, w + j, c]  K[(i j c), o]                           (1)

XLA's own convolution never writes the patches down and is faster where the picture is large. Where the kernel is
the larger one, as in the U-Net's lower levels (8 x 8 pixels, 1,280 channels), it runs at a fifth of the speed of (1).

A picture doubled by nearest neighbour repeats every pixel, so that of the three rows under a kernel two are the same.
Output rows 2 i and 2 i + 1 need only two rows of the small picture, under two rows of kernel made from three,

    y[2 i] = K_0 x[i - 1] + (K_1 + K_2) x[i],        y[2 i + 1] = (K_0 + K_1) x[i] + K_2 x[i + 1],      (2)

and columns alike: four 2 x 2 convolutions of the small picture, 4/9 of the work of the 3 x 3 one of the large.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.core.devices import on_cpu
from sdjax.nn import winograd

Padding = tuple[tuple[int, int], tuple[int, int]]

# Equation 1 is taken where the kernel has this many times the picture's numbers per channel: at 2, the two were
# equal on 2 cores of an AMD EPYC, and the patches cost memory.
KERNEL_TO_PICTURE = 4
# Channels, in and out, from which on Winograd's sums cost less than they save.
WINOGRAD_CHANNELS = 128


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """x `b h w c`, kernel HWIO, zeros of `padding` (above, below), (left, right) -> `b h w o`."""
    numbers = ("NHWC", "HWIO", "NHWC")
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    if on_cpu() and stride == 1:
        if kernel.size // x.shape[-1] > KERNEL_TO_PICTURE * pixels:
            return _as_product(x, kernel, padding)
        if kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS and x.dtype == jnp.float32:
            return winograd.convolve(x, kernel, padding)
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3 x 3 convolution of x `b h w c` enlarged to `b 2h 2w c` by nearest neighbour: equation 2."""
    b, h, w, _ = x.shape
    rows = []
    for by_row, above in _halves(kernel, axis=0):
        columns = [convolve(x, both, 1, (above, left)) for both, left in _halves(by_row, axis=1)]
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


def _as_product(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    rows, columns, features, out = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    b, h, w = x.shape[0], x.shape[1] - rows + 1, x.shape[2] - columns + 1
    patches = [x[:, i : i + h, j : j + w] for i in range(rows) for j in range(columns)]
    matrix = jnp.concatenate(patches, axis=-1).reshape(b * h * w, rows * columns * features)
    return jnp.dot(matrix, kernel.reshape(-1, out)).reshape(b, h, w, out)


def _halves(kernel: jax.Array, axis: int) -> list[tuple[jax.Array, tuple[int, int]]]:
    """The two kernels of equation 2 along `axis`, each with the padding of the small picture."""
    first, second, third = jnp.split(kernel, 3, axis)
    even, odd = (first, second + third), (first + second, third)
    return [(jnp.concatenate(even, axis), (1, 0)), (jnp.concatenate(odd, axis), (0, 1))]
