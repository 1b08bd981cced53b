"""The convolutional half of the U-Net and of the VAE: the residual block, halving and doubling the picture.

Names follow the checkpoint: `norm1 conv1 time_emb_proj norm2 conv2 conv_shortcut`.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from sdjax.nn.conditioning import Signals, Time
from sdjax.nn.layers import Conv, Dense, GroupNorm, nearest
from sdjax.nn.parameter import path_of


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut (He et al. 2016, with the time added as in Ho et al. 2020).

    x is `b h w c`; of the signals, which the VAE has none of, it reads the time. Returns `b h w features`.
    """

    features: int
    groups: int
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals | None = None) -> jax.Array:
        h = jax.nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = Conv(self.features, self.dtype, name="conv1")(h)
        if signals is not None:
            h = h + self._shift(signals.time)[:, None, None, :]
        h = jax.nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = Conv(self.features, self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, self.dtype, size=1, name="conv_shortcut")(x)
        return x + h

    def _shift(self, time: Time) -> jax.Array:
        """What the time adds, `b features`: looked up where it is made already."""
        if isinstance(time, Mapping):
            return time[path_of(self)]
        return Dense(self.features, self.dtype, name="time_emb_proj")(jax.nn.silu(time))


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2.

    The U-Net pads one pixel on every side, the VAE's encoder only below and to the right (`asymmetric`), both from
    the original implementations; `SAME` padding would be neither.
    """

    features: int
    dtype: DTypeLike
    asymmetric: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1)) if self.asymmetric else ((1, 1), (1, 1))
        return Conv(self.features, self.dtype, stride=2, padding=padding, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to `size` (height, width), twice the input's by default, and a convolution."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        if size is not None and size != (2 * x.shape[1], 2 * x.shape[2]):
            return Conv(self.features, self.dtype, name="conv")(nearest(x, size))
        return Conv(self.features, self.dtype, doubled=True, name="conv")(x)
