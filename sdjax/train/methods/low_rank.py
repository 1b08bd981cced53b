"""A low-rank adapter while it is trained: its factors are the parameters, the model's own stay as they are.

    y = x W + (alpha / r) (x A) B,      A ~ U(-1/sqrt(n), 1/sqrt(n)),  B = 0                                    (1)

with A `n r`, B `r o` and n the numbers that go into one of the kernel's outputs (Hu et al. 2021, arXiv:2106.09685; the
start is kohya's: torch's `kaiming_uniform_(a=sqrt(5))`, whose bound is 1/sqrt(n)). B = 0 makes the first step's model
the base itself, to the last bit. For a convolution A is one too, in the kernel's place, to r channels; B is 1 x 1.

Nothing of this knows a loss. `worn` gives a component's parameters with the factors beside their kernels, which every
layer reads (`nn.linear`), so that a gradient with respect to the factors alone is that of an ordinary function;
`tensors` names them as kohya's trainer does, which every program that reads adapters understands.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.core.keys import key
from sdjax.nn.linear import LowRank

Factors = Mapping[str, Mapping[str, jax.Array]]
"""By the module's path, joined by dots: its "down" (`n r`, or HWIO for a convolution) and "up" (`r o`)."""

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""What kohya's names of a component's modules begin with, for models with one text encoder."""


def fresh_factors(params: Mapping[str, Any], chosen: Callable[[str], object], rank: int, seed: int) -> Factors:
    """Equation 1's start for the kernels of a component at the paths for which `chosen` is true, float32.

    params: of the component; its arrays may be their shapes alone. A path is as the checkpoint names the module:
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k".

    Raises ValueError where none is chosen, or the rank is no positive number.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    kernels = {path: params_at["kernel"].shape for path, params_at in layers(params).items()}
    picked = {path: shape for path, shape in kernels.items() if chosen(path)}
    if not picked:
        raise ValueError(f"no layer is chosen; there are {len(kernels)}, such as {next(iter(kernels), 'none')}")
    return {
        path: start(shape, rank, jax.random.fold_in(key(seed), i)) for i, (path, shape) in enumerate(picked.items())
    }


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


def merged(params: Mapping[str, Any], factors: Factors, scale: float) -> dict[str, Any]:
    """As `worn`, with the products added to the kernels: in float32, on the host, then in the kernels' own dtype."""

    def added(layer: Mapping[str, Any], one: Mapping[str, jax.Array]) -> dict[str, Any]:
        kernel, product = np.asarray(layer["kernel"]), np.asarray(one["down"]) @ np.asarray(one["up"])
        return {**layer, "kernel": (kernel.astype(np.float32) + np.float32(scale) * product).astype(kernel.dtype)}

    return changed(params, factors, added)


def tensors(factors: Mapping[str, Factors], alpha: float, dtype: Any = np.float16) -> dict[str, np.ndarray]:
    """The factors of components, by component, as a file in kohya's dialect holds them, in `dtype`.

    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight" `r i` or `r i h w`, ".lora_up.weight" `o r` or
    `o r 1 1`, ".alpha" a number: torch's order of axes, and dots as underscores. Raises ValueError for a component that
    the dialect, in a model with one text encoder, has no name for.
    """
    made: dict[str, np.ndarray] = {}
    for component, own in factors.items():
        if component not in PREFIXES:
            raise ValueError(f"kohya's names know no {component}; they know {' and '.join(PREFIXES)}")
        for path, one in own.items():
            name = f"{PREFIXES[component]}_{path.replace('.', '_')}"
            made |= {f"{name}.{suffix}": array for suffix, array in layer_tensors(one, alpha, dtype).items()}
    return made


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
    """The factors by component, float32, and alpha / r, of what `tensors` wrote, to train on; params: by component.

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
