"""LPIPS: how different two pictures look, by the features of a network that names what is in pictures.

    f_l(x)   `b h w c`, the activations of VGG-16 after its l-th stage (Simonyan & Zisserman 2014, arXiv:1409.1556)
    u_l(x) = f_l(x) / |f_l(x)|                                    of length 1 over the channels                   (1)
    d(x, y) = sum over l of  mean over h, w of  sum over c of  w_lc (u_l(x) - u_l(y))^2,     w_lc >= 0            (2)

(Zhang et al. 2018, arXiv:1801.03924, equation 1; version 0.1 of the authors' weights.) The weights w were fitted to
what people call alike; without them (2) still is a distance, every channel counting the same. Names are torchvision's
for the trunk, "features.0", and the authors' for the weights, "lin0.model.1".
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.nn.layers import Conv
from sdjax.nn.parameter import own_parameters

WIDTHS = (64, 128, 256, 512, 512)  # of VGG-16's stages
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of a stage
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, of pixels in [-1, 1]
TINY = 1e-10


class Lpips(nn.Module):
    """Equation 2: pixels `b h w 3` in [-1, 1], twice -> `b`, float32. widths: of the trunk's stages."""

    widths: Sequence[int] = WIDTHS

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        b = x.shape[0]
        total = jnp.zeros(b, jnp.float32)
        for i, features in enumerate(Trunk(self.widths, name="features")(jnp.concatenate([x, y]))):
            unit = _unit(features)
            weights = ChannelWeights(name=f"lin{i}.model.1")(features.shape[-1])
            total += jnp.mean(jnp.square(unit[:b] - unit[b:]) @ weights, axis=(1, 2))
        return total


class Trunk(nn.Module):
    """VGG-16's convolutions: pixels `b h w 3` in [-1, 1] -> the activations after each of its five stages."""

    widths: Sequence[int] = WIDTHS

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        x = (x.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        stages, number = list[jax.Array](), 0
        for width, depth in zip(self.widths, DEPTHS, strict=True):
            if stages:
                x = nn.max_pool(x, (2, 2), (2, 2))
                number += 1
            for _ in range(depth):
                x = jax.nn.relu(Conv(width, jnp.float32, name=str(number))(x))
                number += 2  # the ReLU is one of torchvision's layers too
            stages.append(x)
        return stages


class ChannelWeights(nn.Module):
    """w of equation 2 for one stage: `c`; kept as the 1 x 1 convolution to one channel that it is in the file."""

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        def equal(_: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            return jnp.full(shape, 1.0, dtype)

        return own_parameters(self, kernel=(equal, (1, 1, channels, 1)))["kernel"][0, 0, :, 0]


def _unit(x: jax.Array) -> jax.Array:
    """Equation 1, with a gradient of 0 where nothing is active."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0) + TINY)
