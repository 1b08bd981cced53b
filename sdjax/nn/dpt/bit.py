"""BiT, the residual network before a hybrid ViT's patches (Kolesnikov et al. 2020, arXiv:1912.11370).

As the depth estimator of Stable Diffusion 2 has it, which is a ResNet-50 of bottlenecks without its last stage:
every convolution's kernel K is standardised over all that goes into one output channel,

    K' = (K - mean K) / sqrt(var K + 1e-8)       (Qiao et al. 2019, arXiv:1903.10520, equation 4)                  (1)

every norm is a GroupNorm, and padding is TensorFlow's "SAME": what an odd number of zeros leaves over goes below and to
the right. Names follow transformers' `BitBackbone`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import DepthConfig
from sdjax.nn.convolution import convolve
from sdjax.nn.layers import GroupNorm, kernel_and_bias
from sdjax.nn.linear import linear
from sdjax.nn.parameter import own_parameters, path_of

KERNEL_EPS, NORM_EPS = 1e-8, 1e-5


class Backbone(nn.Module):
    """Pixels `b H W 3` -> the outputs of its three stages, `b H/4 W/4 c`, `b H/8 W/8 c'`, `b H/16 W/16 c''`."""

    config: DepthConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        config, groups = self.config, self.config.bit_groups
        x = StandardConv(config.bit_stem, self.dtype, 7, 2, name="embedder.convolution")(x)
        x = jax.nn.relu(GroupNorm(groups, NORM_EPS, self.dtype, name="embedder.norm")(x))
        # The reference pads with zeros, which after a ReLU are as good as nothing.
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        outputs = []
        for i, (width, depth) in enumerate(zip(config.bit_widths, config.bit_depths, strict=True)):
            for j in range(depth):
                stride = 2 if i and not j else 1
                name = f"encoder.stages.{i}.layers.{j}"
                x = Bottleneck(width, groups, stride, j == 0, self.dtype, name=name)(x)
            outputs.append(x)
        return outputs


class Bottleneck(nn.Module):
    """1 x 1 to a quarter of the channels, 3 x 3, 1 x 1 back, around a shortcut that the first of a stage projects."""

    features: int
    groups: int
    stride: int
    first: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        narrow, shortcut = quarter(self.features), x
        if self.first:
            shortcut = StandardConv(self.features, self.dtype, 1, self.stride, name="downsample.conv")(x)
            shortcut = self._norm("downsample.norm")(shortcut)
        x = jax.nn.relu(self._norm("norm1")(StandardConv(narrow, self.dtype, 1, name="conv1")(x)))
        x = jax.nn.relu(self._norm("norm2")(StandardConv(narrow, self.dtype, 3, self.stride, name="conv2")(x)))
        x = self._norm("norm3")(StandardConv(self.features, self.dtype, 1, name="conv3")(x))
        return jax.nn.relu(x + shortcut)

    def _norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, NORM_EPS, self.dtype, name=name)


class StandardConv(nn.Module):
    """Convolution by equation 1, without bias, padded as "SAME": `b h w c -> b ceil(h / stride) .. features`."""

    features: int
    dtype: DTypeLike
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        params = own_parameters(self, **kernel_and_bias(shape, use_bias=False))
        kernel = params["kernel"].astype(jnp.float32)
        centred = kernel - kernel.mean((0, 1, 2))
        kernel = centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + KERNEL_EPS)
        return linear(params | {"kernel": kernel}, x, self.dtype, path_of(self), self._product)

    def _product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = (_same(x.shape[1], self.size, self.stride), _same(x.shape[2], self.size, self.stride))
        return convolve(x, kernel, self.stride, padding)


def quarter(features: int) -> int:
    """A quarter of the channels, as a multiple of 8 and not much less."""
    near = max(8, int(features / 4 + 4) // 8 * 8)
    return near + 8 if near < 0.9 * features / 4 else near


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after."""
    all_zeros = max((-(-length // stride) - 1) * stride + size - length, 0)
    return all_zeros // 2, all_zeros - all_zeros // 2
