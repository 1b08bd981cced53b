"""The one place where a kernel meets what goes in: every dense layer and every convolution of every network.

    y = f(x) * K + b + ((f(x) * A) s) B                                                                     (1)

with * a product of matrices, or a convolution by any of its algorithms. A and B are the thin factors of low-rank
adapters (Hu et al. 2021, arXiv:2106.09685) that stand beside the kernel, s each picture's scale of each of their ranks;
f is what a hypernetwork makes of the input. Most layers have neither.

A kernel is read in five places: a dense layer, a convolution, the keys and values of cross-attention (made before the
run, and inside it for the later pieces of a long text) and the time's part of every resnet (made before the run). Each
hands `linear` all parameters of one layer, and `linear` alone says what they mean, so that no reader misses one. A
parameter that is not in LEAVES is refused: flax would ignore it, and the picture would be another than was asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.core.tree import Path
from sdjax.nn.parameter import check_known

Product = Callable[[jax.Array, jax.Array], jax.Array]  # of x and a kernel

LEAVES = ("kernel", "bias", "low_rank", "before")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The factors of all low-rank adapters that stand beside a kernel, laid side by side: r ranks in all.

    Attributes:
      down: A of equation 1, `c r`, or HWIO for a convolution, which it is in the kernel's place. up: B, `r o`.
      scale: s, float32 `b r` for x `b ..`, or `r` for all pictures alike. None where it is still to be given: the
        layer cannot run so.
    """

    down: Any
    up: Any
    scale: Any = None

    def __call__(self, x: jax.Array, dtype: DTypeLike, product: Product) -> jax.Array:
        """The last term of equation 1, in `dtype`."""
        assert self.scale is not None
        inner = product(x, self.down.astype(dtype))
        own = self.scale.shape
        scale = self.scale.reshape(*own[:-1], *[1] * (inner.ndim - len(own)), own[-1])
        return jnp.dot(inner * scale.astype(dtype), self.up.astype(dtype))

    def merges(self, x: jax.Array) -> bool:
        """Whether the factors are better multiplied with each other than with x, which all must wear alike for it.

        A kernel of c x o takes c o r multiplications, n places of x take n (c + o) r. So it does where a CPU runs one
        picture of many tokens: a hundredth of a step of Stable Diffusion 1.5 in place of a tenth.
        """
        assert self.scale is not None
        inputs, outputs = self.down.size // self.down.shape[-1], self.up.shape[-1]
        places = x.size // self.down.shape[-2]
        return self.scale.ndim == 1 and inputs * outputs < places * (inputs + outputs)

    def product(self, dtype: DTypeLike) -> jax.Array:
        """(A s) B, in the kernel's shape and in `dtype`; for one scale alone."""
        assert self.scale is not None
        return jnp.dot(self.down.astype(dtype) * self.scale.astype(dtype), self.up.astype(dtype))


def linear(
    params: Mapping[str, Any],
    x: jax.Array,
    dtype: DTypeLike,
    path: str,
    product: Product = jnp.dot,
) -> jax.Array:
    """Equation 1 in `dtype`: x `... c` -> `... o`.

    params: all of one layer's own: `kernel` (`c o`, or HWIO for a convolution) and, where it has them, `bias` (`o`),
    `low_rank` (a LowRank) and `before` (what is called with x in turn, each giving as much).
    path: of the layer in its network, for the message. product: of x and the kernel, both in `dtype`.

    Raises ValueError for any other parameter beside the kernel.
    """
    check_known(params, LEAVES, path)
    x = x.astype(dtype)
    for one in params.get("before", ()):
        x = one(x)
    kernel, beside = params["kernel"].astype(dtype), params.get("low_rank")
    if beside is not None and beside.merges(x):
        kernel, beside = kernel + beside.product(dtype), None
    y = product(x, kernel)
    if beside is not None:
        y = y + beside(x, dtype, product)
    return y + params["bias"].astype(dtype) if "bias" in params else y


def put_before(params: Mapping[str, Any], layers: Mapping[Path, Callable[[jax.Array], jax.Array]]) -> dict[str, Any]:
    """A network's parameters with these called before the layers at these paths (`before` of `linear`).

    What stands there already goes first. Pure: `params` stay as they are, and the arrays are shared. Raises KeyError
    for a path that is not there.
    """
    made = dict(params)
    for name in dict.fromkeys(path[0] for path in layers if path):
        made[name] = put_before(params[name], {path[1:]: one for path, one in layers.items() if path[:1] == (name,)})
    return made | ({"before": (*params.get("before", ()), layers[()])} if () in layers else {})
