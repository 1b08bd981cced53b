"""A low-rank adapter while it is trained: its factors are the parameters, the model's own stay as they are.

    y = x W + (alpha / r) (x A) B,      A ~ U(-1/sqrt(n), 1/sqrt(n)),  B = 0                                    (1)

with A `n r`, B `r o` and n the numbers that go into one of the kernel's outputs (Hu et al. 2021, arXiv:2106.09685; the
start is kohya's: torch's `kaiming_uniform_(a=sqrt(5))`, whose bound is 1/sqrt(n)). B = 0 makes the first step's model
the base itself, to the last bit. For a convolution A is one too, in the kernel's place, to r channels; B is 1 x 1.

Nothing of this knows a loss. `worn` gives a component's parameters with the factors beside their kernels, which every
layer reads (`nn.linear`), so that a gradient with respect to the factors alone is that of an ordinary function.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn.linear import LowRank

Factors = Mapping[str, Mapping[str, jax.Array]]
"""By the module's path, joined by dots: its "down" (`n r`, or HWIO for a convolution) and "up" (`r o`)."""

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""What kohya's names of a component's modules begin with, for models with one text encoder."""


def start(shape: tuple[int, ...], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Equation 1's start for one kernel of this shape, `i o` or HWIO."""
    bound = float(np.prod(shape[:-1])) ** -0.5
    down = jax.random.uniform(key, (*shape[:-1], rank), jnp.float32, -bound, bound)
    return {"down": down, "up": jnp.zeros((rank, shape[-1]), jnp.float32)}


def worn(params: Mapping[str, Any], factors: Factors, scale: float) -> dict[str, Any]:
    """A component's parameters with the factors beside their kernels; scale: alpha / r, times the adapter's strength.

    Raises ValueError where the component has no layer at one of the paths.
    """

    return changed(params, factors, lambda layer, one: beside(layer, one, scale))


def beside(layer: Mapping[str, Any], one: Mapping[str, jax.Array], scale: float) -> dict[str, Any]:
    """One layer's parameters with the factors beside its kernel.

    The scale is that of a batch, `1 r`: then the factors are multiplied with x, and never with each other. Their
    gradient takes n (i + o) r multiplications for n places; through the product A B it would take n i o, as many as the
    gradient of the kernel itself, and hold a copy of every kernel until the way back.
    """
    scales = jnp.full((1, one["up"].shape[0]), scale, jnp.float32)
    return {**layer, "low_rank": LowRank(one["down"], one["up"], scales)}


def layer_tensors(one: Mapping[str, Any], alpha: float, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The tensors of one layer by what kohya's names end in."""
    down, up = np.asarray(one["down"]), np.asarray(one["up"])
    # Contiguous: safetensors' own writer for NumPy takes a transposed array's bytes as they lie in memory.
    return {
        "lora_down.weight": down.transpose(-1, -2, *range(down.ndim - 2)).astype(dtype, order="C"),
        "lora_up.weight": up.T.reshape(*up.T.shape, *[1] * (down.ndim - 2)).astype(dtype, order="C"),
        "alpha": np.asarray(alpha, dtype),
    }


def untensors(named: Mapping[str, np.ndarray], params: Mapping[str, Any]) -> tuple[dict[str, Factors], float]:
    """The factors by component, float32, and alpha / r, of a file that `LoRA` wrote, to train on; params: by component.

    Of files by others `sdjax.adapters` reads every dialect. Raises ValueError where a name belongs to no layer, or the
    layers have several scales.
    """
    found: dict[str, Factors] = {}
    left = {name.rpartition(".lora_down.")[0] for name in named if ".lora_down." in name}
    scales = {float(named[f"{name}.alpha"]) / len(named[f"{name}.lora_down.weight"]) for name in left}
    for component, prefix in PREFIXES.items():
        own = {f"{prefix}_{path.replace('.', '_')}": path for path in layers(params.get(component, {}))}
        found[component] = {path: _one(named, name) for name, path in own.items() if name in left}
        left -= own.keys()
    if left or len(scales) != 1:
        raise ValueError(f"no adapter that was trained here: {min(left, default=f'{len(scales)} scales')}")
    return found, scales.pop()


def _one(named: Mapping[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    down, up = (np.asarray(named[f"{name}.lora_{part}.weight"], np.float32) for part in ("down", "up"))
    return {
        "down": jnp.asarray(down.transpose(*range(2, down.ndim), 1, 0)),
        "up": jnp.asarray(up.reshape(len(up), -1).T),
    }


def layers(params: Mapping[str, Any], above: str = "") -> dict[str, Mapping[str, Any]]:
    """The layers of a component that have a kernel, by their paths joined by dots."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            path = f"{above}.{name}".removeprefix(".")
            found |= {path: value} if "kernel" in value else layers(value, path)
    return found


def changed(
    params: Mapping[str, Any],
    factors: Factors,
    change: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The component's tree with `change(layer, factors)` in place of each layer that has factors."""
    left = dict(factors)

    def walk(tree: Mapping[str, Any], above: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in tree.items():
            path = f"{above}.{name}".removeprefix(".")
            if path in left:
                made[name] = change(value, left.pop(path))
            else:
                made[name] = walk(value, path) if isinstance(value, Mapping) else value
        return made

    made = walk(params, "")
    if left:
        raise ValueError(f"the component has no layer {next(iter(left))}, which {len(left)} of the factors are for")
    return made
