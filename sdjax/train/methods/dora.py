"""DoRA: LoRA for the direction of each output's weights, and a number of its own for their length.

    M = K + s A B,    K' = c M / |M|                                                                        (1)

(Liu et al. 2024, arXiv:2402.09353, equation 5), |.| the norm over all axes but the outputs'. The lengths c begin as
|K|, so that the first step's model is the base. In the gradient |M| counts as a constant (section 4.3 there, as PEFT
does): half the memory, and hardly another result.

K' is made in the forward pass, in float32: unlike LoRA's, a copy of every chosen kernel is held until the way back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.methods.beside import Factors
from sdjax.train.methods.lora import LoRA


@dataclass(frozen=True)
class DoRA(LoRA):
    """Equation 1."""

    def factors(self, kernel: Any, key: jax.Array) -> Factors:
        """See `Beside`: LoRA's, and "lengths", c, `o`."""
        return {**super().factors(kernel, key), "lengths": _norm(jnp.asarray(kernel, jnp.float32))}

    def changed(self, layer: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
        """See `Beside`."""
        kernel = jnp.asarray(layer["kernel"], jnp.float32)
        moved = kernel + self.scale * jnp.dot(factors["down"], factors["up"])
        return {**layer, "kernel": moved * (factors["lengths"] / jax.lax.stop_gradient(_norm(moved)))}

    def tensors(self, factors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, np.ndarray]:
        """See `Beside`: the lengths as LyCORIS has them, `o 1` or `o 1 1 1`."""
        lengths = np.asarray(factors["lengths"]).reshape(-1, *[1] * (kernel.ndim - 1))
        return {**super().tensors(factors, kernel), "dora_scale": lengths}

    def described(self) -> dict[str, str]:
        """See `Beside`."""
        args = '{"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}'
        return {**super().described(), "ss_network_module": "lycoris.kohya", "ss_network_args": args}


def _norm(kernel: jax.Array) -> jax.Array:
    """Of each output's weights; one that is all zeros has the length 1, and stays as it is."""
    square = jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1)))
    return jnp.sqrt(jnp.where(square > 0, square, 1.0))
