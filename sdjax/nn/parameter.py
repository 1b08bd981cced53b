"""A layer's parameters: looked up where they are given, drawn where a network is made, else no more than shapes.

flax's `Module.param` evaluates the initialiser abstractly whenever a network is applied, to compare shapes: for the
hundreds of kernels of a U-Net that is a tenth of the time of tracing it. And flax ignores a parameter that no module
asks for: a layer that reads its own by `own_parameters` is given those too, and refuses them by `check_known`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
            where = f"{path_of(module)}.{name}".removeprefix(".")
            raise ValueError(f"{where} must have the shape {tuple(shape)}, not {jnp.shape(given)}")
        return given
    if not module.has_rng("params"):
        return module.variable("params", name, jnp.zeros, shape, jnp.float32).value
    return module.param(name, init, shape)


def own_parameters(module: nn.Module, **wanted: tuple[Init, Sequence[int]]) -> dict[str, Any]:
    """All parameters of a layer that has no modules inside, by name: those `wanted`, and what else was given.

    wanted: the initialiser and the shape of each, as `parameter` takes them. Raises ValueError for another shape.
    """
    given = module.variables.get("params", {})
    return {**given, **{name: parameter(module, name, *one) for name, one in wanted.items()}}


def check_known(params: Mapping[str, Any], known: Collection[str], path: str) -> None:
    """Raises ValueError, by name, for a parameter of the layer at `path` that is not one of those `known`."""
    for name in params:
        if name not in known:
            where = f"{path}.{name}".removeprefix(".")
            raise ValueError(
                f"{where}: no layer reads such a parameter, and the network would run as if it were not there; "
                f"this layer's are {', '.join(known)}"
            )


def path_of(module: nn.Module) -> str:
    """Where a module stands in its network, as its parameters are named: "mid_block.resnets.0"; "" for the whole."""
    return ".".join(module.path)


def shapes(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The parameters that `module(*args, **kwargs)` takes: nested dict of `jax.ShapeDtypeStruct`. Draws nothing."""
    made = jax.eval_shape(
        lambda *args, **kwargs: module.apply({}, *args, mutable=["params"], **kwargs), *args, **kwargs
    )
    return made[1]["params"]
