"""The parts that a family's networks are made of, each kind once: what is compiled in minutes where a whole takes ten.

A network is traced by its shapes, and every module that it calls is looked at on the way. Those of PARTS tile it: no
two contain each other, and beside them nothing is left but additions and the joining of skips. Two are the same part
where their class, settings, parameters and inputs are. INSIDE are looked at too, being parts of a part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments import _programs
from sdjax.nn.attention import Attention, FeedForward, TransformerBlock
from sdjax.nn.clip import ClipTextEncoder, Embeddings, EncoderLayer
from sdjax.nn.conditioning import Chunks, Signals
from sdjax.nn.layers import Conv, Dense, GroupNorm, LayerNorm
from sdjax.nn.parameter import path_of
from sdjax.nn.resnet import Downsample, ResnetBlock, Upsample
from sdjax.nn.vae import Autoencoder, PixelAttention

PARTS = (
    *(ResnetBlock, TransformerBlock, Downsample, Upsample, PixelAttention, EncoderLayer, Embeddings),
    *(Conv, Dense, GroupNorm, LayerNorm),
)
INSIDE = (Attention, FeedForward, GroupNorm)


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a network.

    Attributes:
      network: "U-Net step", "decode", "text" .. what: its class and the shape of what goes in, and where it is in it.
      module: flax's, on its own. arrays: parameters, and what it is called with. static: what comes behind, no arrays.
      times: how often the network has it. whole: whether it is one of those that tile the network.
    """

    network: str
    what: str
    module: nn.Module
    arrays: tuple[Any, ...]
    static: tuple[Any, ...]
    times: int
    whole: bool

    def __call__(self, params: Any, *args: Any) -> Any:
        """Runs it."""
        return self.module.apply({"params": params}, *args, *self.static)


def parts(family: str, size: int, batch: int, dtype: str) -> list[Part]:
    """The distinct parts of all networks that a guided picture goes through; of each network what tiles it first."""
    configs = _programs.networks(family)
    params = _programs.parameters(configs, dtype)
    made = []
    if "unet" in configs:
        made += _unet(_programs.step(family, size, batch, dtype, configs, params))
    for name, config in configs.items():
        if name.startswith("text_encoder"):
            made += _text(name.replace("_encoder", ""), config, params[name], dtype)
    return made + _decoder(configs["vae"], params["vae"], size, dtype)


def _unet(call: _programs.Call) -> list[Part]:
    (denoiser, _), (carry, rows, params, conditions, _, _) = call.static, call.arrays
    timesteps = jax.ShapeDtypeStruct(jnp.shape(rows.timestep), "float32")
    shifts = jax.eval_shape(denoiser.per_row, params, timesteps, conditions)
    count = 2 * carry.x_T.shape[0]
    time = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[2:]), a.dtype), shifts)
    x = jax.ShapeDtypeStruct((count, *carry.x_T.shape[1:]), "float32")
    return _distinct("U-Net step", params, denoiser, params, x, time, conditions)


def _text(name: str, config: Any, params: Any, dtype: str) -> list[Part]:
    ids, encoder = jax.ShapeDtypeStruct((1, 77), "int32"), ClipTextEncoder(config, jnp.dtype(dtype))
    return _distinct(name, params, lambda params, ids: encoder.apply({"params": params}, ids), params, ids)


def _decoder(config: Any, params: Any, size: int, dtype: str) -> list[Part]:
    """Of one picture, not cut into tiles."""
    side, vae = size // config.factor, Autoencoder(config, jnp.dtype(dtype))
    z = jax.ShapeDtypeStruct((1, side, side, config.latent_channels), "float32")
    decode = partial(vae.apply, method="decode")
    return _distinct("decode", params, lambda params, z: decode({"params": params}, z), params, z)


def _distinct(network: str, own: Any, run: Any, *args: Any) -> list[Part]:
    """The parts of `run(*args)`. own: the network's parameters."""
    found: dict[str, Part] = {}
    inside: list[nn.Module] = []

    def look(call: Any, given: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, PARTS + INSIDE):
            return call(*given, **named)
        whole = not inside and isinstance(module, PARTS)
        if whole or isinstance(module, INSIDE):
            _add(found, _part(network, own, module, given, whole))
        if not whole:
            return call(*given, **named)
        inside.append(module)
        try:
            return call(*given, **named)
        finally:
            inside.pop()

    with nn.intercept_methods(look):
        jax.eval_shape(run, *args)
    return sorted(found.values(), key=lambda part: not part.whole)


def _part(network: str, own: Any, module: nn.Module, given: tuple[Any, ...], whole: bool) -> Part:
    path = path_of(module)
    traced = [one for one in given if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(one))]
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tuple(_alone(one, path) for one in traced))
    mine: Any = own
    for name in module.path:
        mine = mine.get(name, {})
    settings = {one.name: getattr(module, one.name) for one in fields(module) if one.name not in ("parent", "name")}
    x = jax.tree.leaves(shapes[0])[0]
    what = f"{type(module).__name__} {' x '.join(map(str, x.shape))}"
    if getattr(module, "features", None) not in (None, x.shape[-1]):
        what += f" to {module.features}"
    if isinstance(module, Attention):
        what += f", {module.heads} heads, to {'text' if len(given) > 1 and given[1] is not None else 'itself'}"
    return Part(network, what, type(module)(**settings, parent=None), (mine, *shapes), given[len(traced) :], 1, whole)


def _alone(argument: Any, path: str) -> Any:
    """What a module is called with, where paths of other modules are left out and its own begin with itself."""
    if not isinstance(argument, Signals):
        return argument
    time, conditions = argument.time, argument.conditions
    text = conditions.context
    if isinstance(text, Chunks):
        text = replace(text, first=_under(text.first, path))
    time = _under(time, path) if isinstance(time, Mapping) else time
    return replace(argument, time=time, conditions=replace(conditions, context=text, added=None))


def _under(by_path: Mapping[str, Any], path: str) -> dict[str, Any]:
    return dict(_beneath(by_path, path))


def _beneath(by_path: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in by_path.items():
        if name == path or name.startswith(f"{path}."):
            yield name[len(path) + 1 :], value


def _add(found: dict[str, Part], part: Part) -> None:
    key = repr((part.what, part.module, part.whole, part.arrays, part.static))
    found[key] = replace(found[key], times=found[key].times + 1) if key in found else part
