"""LoHa: the elementwise product of two products of thin matrices, whose rank may be r^2 for the numbers of two LoRAs.

    W' = W + (alpha / r) (a_1 b_1) * (a_2 b_2)          a_n `o r`, b_n `r i` or `r ihw`                     (1)

(Hyeon-Woo et al. 2021, arXiv:2108.06098, equation 3, as LyCORIS trains and writes it.) Here weights and factors have
torch's order of axes, which is the file's; a convolution's b_n has its inputs and places in one axis. b_1 and b_2 begin
as unit Gaussians, a_1 with a standard deviation of 0.1, a_2 as 0: the first step's model is the base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.methods.beside import Beside, Factors, as_kernel, weight_shape


@dataclass(frozen=True)
class LoHa(Beside):
    """Equation 1."""

    def factors(self, kernel: Any, key: jax.Array) -> Factors:
        """See `Beside`: by LyCORIS' names, in the file's order of axes."""
        outputs, *inputs = weight_shape(kernel)
        keys, wide = jax.random.split(key, 3), (self.rank, int(np.prod(inputs)))
        return {
            "hada_w1_a": 0.1 * jax.random.normal(keys[0], (outputs, self.rank)),
            "hada_w1_b": jax.random.normal(keys[1], wide),
            "hada_w2_a": jnp.zeros((outputs, self.rank)),
            "hada_w2_b": jax.random.normal(keys[2], wide),
        }

    def changed(self, layer: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
        """See `Beside`."""
        first = jnp.dot(factors["hada_w1_a"], factors["hada_w1_b"])
        product = first * jnp.dot(factors["hada_w2_a"], factors["hada_w2_b"])
        change = as_kernel(product.reshape(weight_shape(layer["kernel"])))
        return {**layer, "kernel": jnp.asarray(layer["kernel"], jnp.float32) + self.scale * change}

    def tensors(self, factors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, np.ndarray]:
        """See `Beside`."""
        return {**factors, "alpha": np.asarray(self.written_alpha, np.float32)}

    def described(self) -> dict[str, str]:
        """See `Beside`."""
        return {
            "ss_network_module": "lycoris.kohya",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": f"{self.written_alpha:g}",
            "ss_network_args": json.dumps({"algo": "loha"}),
        }
