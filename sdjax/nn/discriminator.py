"""PatchGAN: a network that says of every patch of a picture how real it looks (Isola et al. 2017, arXiv:1611.07004).

Convolutions of 4 x 4 pixels, the first `layers` of which halve the picture, the last of which has one channel: its
outputs, the logits, each see a patch of 70 x 70 pixels where layers = 3. Its layers are numbered and named as in
taming-transformers' NLayerDiscriminator (Esser et al. 2021, arXiv:2012.09841), from where the autoencoders of latent
diffusion have it.

    y = (x - m) / sqrt(v + 1e-5) * scale + bias                                                                (1)

is the norm between them: with "batch" m and v are the channel's over all pictures of the batch (Ioffe & Szegedy 2015),
as published; with "group" they are a group of channels' in one picture, and no picture's logits depend on another's.
There are no running averages: this network is never used but in training.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.core.errors import unknown
from sdjax.nn.layers import Conv, GroupNorm
from sdjax.nn.parameter import own_parameters, shapes

NORMS = ("batch", "group")
EPS = 1e-5
GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Pixels `b h w 3` in [-1, 1] -> logits `b h' w'`, float32, large where real. Raises ValueError, unknown norm."""

    width: int = 64
    layers: int = 3
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.norm not in NORMS:
            raise ValueError(unknown(f"discriminator norm {self.norm!r} is unknown", self.norm, NORMS))
        widths = [self.width * min(2**i, 8) for i in range(self.layers + 1)]
        x = _leaky(_conv(widths[0], 2, True, "main.0")(x.astype(jnp.float32)))
        for i, width in enumerate(widths[1:]):
            x = _conv(width, 2 if i < self.layers - 1 else 1, False, f"main.{3 * i + 2}")(x)
            x = _leaky(self._norm(f"main.{3 * i + 3}")(x))
        return _conv(1, 1, True, f"main.{3 * self.layers + 2}")(x)[..., 0]

    def _norm(self, name: str) -> nn.Module:
        return BatchNorm(name=name) if self.norm == "batch" else GroupNorm(GROUPS, EPS, jnp.float32, name=name)


class BatchNorm(nn.Module):
    """Equation 1 over the batch and the pixels of `b h w c`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape: Sequence[int] = x.shape[-1:]
        params = own_parameters(self, scale=(nn.initializers.ones, shape), bias=(nn.initializers.zeros, shape))
        mean = jnp.mean(x, axis=(0, 1, 2))
        variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(variance + EPS) * params["scale"] + params["bias"]


def fresh_discriminator(network: PatchDiscriminator, key: jax.Array) -> dict[str, Any]:
    """Parameters before training, float32: kernels N(0, .02), scales N(1, .02), biases 0."""
    side = 2 ** (network.layers + 2)
    wanted = shapes(network, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))

    def drawn(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, layer = path[-1].key, path[0].key
        if name == "bias":
            return jnp.zeros(leaf.shape)
        own = jax.random.fold_in(key, int(layer.rpartition(".")[2]))
        return (1.0 if name == "scale" else 0.0) + 0.02 * jax.random.normal(own, leaf.shape)

    return jax.tree_util.tree_map_with_path(drawn, wanted)


def _conv(width: int, stride: int, bias: bool, name: str) -> Conv:
    return Conv(width, jnp.float32, size=4, stride=stride, padding=((1, 1), (1, 1)), use_bias=bias, name=name)


def _leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.2)
