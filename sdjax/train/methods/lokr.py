"""LoKr: a Kronecker product of two small matrices beside each kernel, the larger of them thin where the rank allows.

    W'[u o2 + p, v i2 + q, ..] = W[..] + s w1[u,v] w2[p,q, ..]      w1 `o1 i1`, w2 `o2 i2 ..`, o = o1 o2, i = i1 i2  (1)
    w2 = its own numbers, s = 1                  where 2 r >= max(o2, i2)
         w2_a `o2 r` times w2_b `r i2..`, s = alpha / r          else                                       (2)

(Edalati et al. 2022, arXiv:2212.10650, as LyCORIS trains and writes it.) o1 is the divisor of o nearest to its root
from below, or `factor` where that divides it; i1 likewise. Weights and factors have torch's order of axes, the file's.
w1 and w2_a begin uniform within 1 / sqrt(n), n the length of their rows; w2, or w2_b, as 0.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.methods.beside import Beside, Factors, as_kernel, weight_shape


@dataclass(frozen=True)
class LoKr(Beside):
    """Equations 1 and 2; factor: the most that o1 and i1 may be, -1 for their roots."""

    factor: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor != -1 and self.factor < 1:
            raise ValueError(f"factor must be -1, for the roots of a layer's sizes, or from 1 on, not {self.factor}")

    def factors(self, kernel: Any, key: jax.Array) -> Factors:
        """See `Beside`: by LyCORIS' names, in the file's order of axes."""
        outputs, inputs, *spatial = weight_shape(kernel)
        (o1, o2), (i1, i2) = factorised(outputs, self.factor), factorised(inputs, self.factor)
        keys, rank = jax.random.split(key), self.rank
        w1 = {"lokr_w1": _uniform(keys[0], (o1, i1))}
        if 2 * rank >= max(o2, i2):
            return w1 | {"lokr_w2": jnp.zeros((o2, i2, *spatial))}
        wide = i2 * int(np.prod(spatial))
        return w1 | {"lokr_w2_a": _uniform(keys[1], (o2, rank)), "lokr_w2_b": jnp.zeros((rank, wide))}

    def changed(self, layer: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
        """See `Beside`."""
        shape, w1 = weight_shape(layer["kernel"]), factors["lokr_w1"]
        if "lokr_w2" in factors:
            w2, scale = factors["lokr_w2"], 1.0
        else:
            w2, scale = jnp.dot(factors["lokr_w2_a"], factors["lokr_w2_b"]), self.scale
        w2 = w2.reshape(len(w2), shape[1] // w1.shape[1], -1)
        product = w1[:, None, :, None, None] * w2[None, :, None]
        change = as_kernel(product.reshape(shape))
        return {**layer, "kernel": jnp.asarray(layer["kernel"], jnp.float32) + scale * change}

    def tensors(self, factors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, np.ndarray]:
        """See `Beside`; where w2 has its own numbers alpha says r, as LyCORIS writes it, and means nothing."""
        alpha = float(self.rank) if "lokr_w2" in factors else self.written_alpha
        return {**factors, "alpha": np.asarray(alpha, np.float32)}

    def described(self) -> dict[str, str]:
        """See `Beside`."""
        return {
            "ss_network_module": "lycoris.kohya",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": f"{self.written_alpha:g}",
            "ss_network_args": json.dumps({"algo": "lokr", "factor": str(self.factor)}),
        }


def factorised(size: int, most: int = -1) -> tuple[int, int]:
    """(m, n) with m n = size and m <= n: m is `most` or its cofactor where it divides `size`.

    Else m is the largest divisor that is neither above the root of `size` nor, where that is positive, above `most`.
    """
    if most > 0 and size % most == 0:
        return min(most, size // most), max(most, size // most)
    limit = size if most < 0 else most
    smaller = max(m for m in range(1, math.isqrt(size) + 1) if size % m == 0 and m <= limit)
    return smaller, size // smaller


def _uniform(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
