"""The one place where a kernel meets what goes in: every dense layer and every convolution of every network.

    y = x * K + b        with * a product of matrices, or a convolution by any of its algorithms                  (1)

A kernel is read in five places: a dense layer, a convolution, the keys and values of cross-attention (made before the
run, and inside it for the later pieces of a long text) and the time's part of every resnet (made before the run). Each
hands `linear` all parameters of one layer, and `linear` alone says what they mean. So what is to stand beside a
kernel, as the two thin matrices of a low-rank adapter (Hu et al. 2021, arXiv:2106.09685) would, is added to LEAVES
and to equation 1 here, and no reader misses it. Until then it is refused: flax would ignore it, and the picture would
be another than was asked for.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.nn.parameter import check_known

LEAVES = ("kernel", "bias")


def linear(
    params: Mapping[str, jax.Array],
    x: jax.Array,
    dtype: DTypeLike,
    path: str,
    product: Callable[[jax.Array, jax.Array], jax.Array] = jnp.dot,
) -> jax.Array:
    """Equation 1 in `dtype`: x `... c` -> `... o`.

    params: all of one layer's own, `kernel` (`c o`, or HWIO for a convolution) and, where it has one, `bias` (`o`).
    path: of the layer in its network, for the message. product: of x and the kernel, both in `dtype`.

    Raises ValueError for any other parameter beside the kernel.
    """
    check_known(params, LEAVES, path)
    y = product(x.astype(dtype), params["kernel"].astype(dtype))
    return y + params["bias"].astype(dtype) if "bias" in params else y
