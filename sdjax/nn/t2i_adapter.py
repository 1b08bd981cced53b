"""T2I-Adapter (Mou et al. 2023, arXiv:2302.08453; diffusers' models/adapter.py): a picture's features for the U-Net.

It sees neither the latents nor the time, so that its features are made once a run. Four stages of resnets without any
norm; the U-Net adds the features of one stage to what each of its levels hands to the next, scaled as the user wants.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config.t2i_adapter import LIGHT, T2IAdapterConfig
from sdjax.nn.layers import Conv

Features = tuple[jax.Array, ...]


class T2IAdapter(nn.Module):
    """A picture `b H W c`, [0, 1] -> the features of its four stages, `b h w d` each, the finest first.

    The first are H and W by `config.downscale_factor`, which must divide them; an odd size is halved upwards.

    Raises ValueError for a picture of another size or number of channels.
    """

    config: T2IAdapterConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, picture: jax.Array) -> Features:
        config = self.config
        x = unshuffle(picture.astype(self.dtype), config.downscale_factor, config.in_channels)
        if config.adapter_type != LIGHT:
            x = Conv(config.channels[0], self.dtype, name="conv_in")(x)
        features = []
        for i in range(len(config.channels)):
            x = Stage(config, i, self.dtype, name=f"body.{i}")(x)
            features.append(x)
        return tuple(features)


class Stage(nn.Module):
    """One stage: `b h w c` -> `b h' w' d`. A light one's resnets have a quarter of its channels."""

    config: T2IAdapterConfig
    index: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, width = self.config, self.config.channels[self.index]
        light = config.adapter_type == LIGHT
        inner = width // 4 if light else width
        if config.halved[self.index]:
            x = halve(x)
        if light or x.shape[-1] != inner:
            x = Conv(inner, self.dtype, size=1, name="in_conv")(x)
        for j in range(config.resnets):
            x = Resnet(3 if light else 1, self.dtype, name=f"resnets.{j}")(x)
        return Conv(width, self.dtype, size=1, name="out_conv")(x) if light else x


class Resnet(nn.Module):
    """x + block2(relu(block1(x))), `b h w c -> b h w c`; `size` is the second kernel's."""

    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(Conv(x.shape[-1], self.dtype, name="block1")(x))
        return x + Conv(x.shape[-1], self.dtype, size=self.size, name="block2")(h)


def unshuffle(picture: jax.Array, factor: int, channels: int) -> jax.Array:
    """Squares of pixels as channels: `b H W c -> b H/f W/f (c f f)`, in the order of torch's PixelUnshuffle.

    Raises ValueError where f does not divide H and W, or there are not as many channels.
    """
    b, height, width, c = picture.shape
    if height % factor or width % factor or c != channels:
        raise ValueError(
            f"the picture must be of {channels} channels, its height and width multiples of {factor}; "
            f"it is {height} x {width} x {c}"
        )
    squares = picture.reshape(b, height // factor, factor, width // factor, factor, c)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(b, height // factor, width // factor, -1)


def halve(x: jax.Array) -> jax.Array:
    """The mean of every four pixels, `b h w c -> b h/2 w/2 c`; of an odd row or column at the end, of what is there.

    As torch's AvgPool2d(2, ceil_mode=True): a last row that is repeated has the mean that it has alone.
    """
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean((2, 4))
