"""A 3 x 3 convolution in 4/9 of the multiplications (Winograd 1980; Lavin & Gray, arXiv:1509.09308, F(2 x 2, 3 x 3)).

Two neighbouring outputs of a filter g of three taps need the inputs d_0 .. d_3, and four products in place of six:

    m_0 = (d_0 - d_2) g_0                      m_1 = (d_1 + d_2) (g_0 + g_1 + g_2) / 2
    m_2 = (d_2 - d_1) (g_0 - g_1 + g_2) / 2    m_3 = (d_1 - d_3) g_2
    y_0 = m_0 + m_1 + m_2                      y_1 = m_1 - m_2 - m_3                                    (1)

Over rows and columns both, tiles of 2 x 2 outputs from 4 x 4 inputs that overlap: 16 products in place of 36, each,
for all tiles at once and all channels, one product of matrices `[tiles, c] [c, features]`.

The sums cost digits: about 2e-6 of the largest output in float32, where the plain form has 3e-7.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Numbers of transformed picture held at once (16 MiB in float32); strips of a larger one go through one by one.
AT_ONCE = 2**22

Four = Sequence[jax.Array]


def convolve(x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    """x `b h w c`, kernel `3 3 c o`, zeros of `padding` (above, below), (left, right) -> `b h' w' o`."""
    b, (height, width) = x.shape[0], (size + sum(more) - 2 for size, more in zip(x.shape[1:3], padding, strict=True))
    rows, columns = -(-height // 2), -(-width // 2)
    strips = -(-16 * b * rows * columns * max(kernel.shape[2:]) // AT_ONCE)
    each = -(-rows // min(strips, rows))  # rows of tiles in a strip; the last may reach below the picture
    strips = -(-rows // each)
    (above, below), (left, right) = padding
    below, right = below + 2 * strips * each - height, right + 2 * columns - width
    x = jnp.pad(x, ((0, 0), (above, below), (left, right), (0, 0)))
    kernels = _kernels(kernel)
    if strips == 1:
        y = _strip(x, kernels)
    else:
        first = 2 * each * jnp.arange(strips)
        y = lax.map(lambda at: _strip(lax.dynamic_slice_in_dim(x, at, 2 * each + 2, axis=1), kernels), first)
        y = y.swapaxes(0, 1).reshape(b, -1, *y.shape[3:])
    return y[:, :height, :width]


def _strip(x: jax.Array, kernels: Sequence[jax.Array]) -> jax.Array:
    """x `b h+2 w+2 c`, both even -> `b h w o`."""
    b, h, w = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    made = _outputs([jnp.dot(part, kernel) for part, kernel in zip(_inputs(x), kernels, strict=True)])
    by_column = [jnp.stack([part.reshape(b, h // 2, w // 2, -1) for part in row], axis=3) for row in made]
    return jnp.stack(by_column, axis=2).reshape(b, h, w, -1)


def _inputs(x: jax.Array) -> list[jax.Array]:
    """`b h+2 w+2 c` -> the 16 sums of inputs of equation 1, `(b h/2 w/2) c` each."""
    rows, columns = x.shape[1] // 2 - 1, x.shape[2] // 2 - 1

    def taken(i: int, j: int) -> jax.Array:
        return x[:, i % 2 :: 2, j % 2 :: 2][:, i // 2 : i // 2 + rows, j // 2 : j // 2 + columns]

    def sums(d: Four) -> Four:
        return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]

    made = _both([[taken(i, j) for j in range(4)] for i in range(4)], sums)
    return [part.reshape(-1, x.shape[-1]) for row in made for part in row]


def _kernels(kernel: jax.Array) -> list[jax.Array]:
    """`3 3 c o` -> the 16 sums of taps of equation 1, `c o` each."""

    def sums(g: Four) -> Four:
        return g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]

    return [part for row in _both([list(taps) for taps in kernel], sums) for part in row]


def _outputs(products: list[jax.Array]) -> list[Four]:
    """16 products, `n o` each -> the outputs of row 0 and of row 1, each those of column 0 and of column 1."""

    def sums(m: Four) -> Four:
        return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

    return _both([products[i : i + 4] for i in range(0, 16, 4)], sums)


def _both(square: Sequence[Four], sums: Callable[[Four], Four]) -> list[Four]:
    """`sums` along the columns of a square of arrays, then along its rows."""
    columns = [sums(column) for column in zip(*square, strict=True)]
    return [sums(row) for row in zip(*columns, strict=True)]
