"""A layer's parameter: looked up where it is given, drawn where a network is made, else no more than a shape.

flax's `Module.param` evaluates the initialiser abstractly whenever a network is applied, to compare shapes: for the
hundreds of kernels of a U-Net that is a tenth of the time of tracing it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., Any]  # key, shape, dtype -> array


def parameter(module: nn.Module, name: str, init: Init, shape: Sequence[int]) -> jax.Array:
    """The parameter `name` of a module, of that shape.

    As `module.param`, but `init` is called by `module.init` alone. In `shapes` it is zeros.

    Raises ValueError where the one given has another shape.
    """
    if module.has_variable("params", name):
        given = module.get_variable("params", name)
        if jnp.shape(given) != tuple(shape):
            where = ".".join((*module.path, name))
            raise ValueError(f"{where} must have the shape {tuple(shape)}, not {jnp.shape(given)}")
        return given
    if not module.has_rng("params"):
        return module.variable("params", name, jnp.zeros, shape, jnp.float32).value
    return module.param(name, init, shape)


def shapes(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The parameters that `module(*args, **kwargs)` takes: nested dict of `jax.ShapeDtypeStruct`. Draws nothing."""
    made = jax.eval_shape(
        lambda *args, **kwargs: module.apply({}, *args, mutable=["params"], **kwargs), *args, **kwargs
    )
    return made[1]["params"]
