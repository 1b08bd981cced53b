"""What every network here is made of: convolution, dense, normalisation, activations, the timestep embedding.

Arrays are channels-last (`b h w c`) and kernels HWIO, whatever the checkpoint's own order was. Parameters keep the
dtype they were loaded in; each layer computes in its `dtype`, and normalisation statistics are always float32
(in float16 the variance of a 512-channel group overflows, in bfloat16 it loses the fourth digit).

Epsilons are required arguments: flax's default (1e-6) is wrong for the U-Net's resnets and for every LayerNorm of
CLIP (1e-5), and right for the VAE, so a default would hide a bug half of the time.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.core.devices import on_cpu
from sdjax.nn.convolution import Padding, convolve, convolve_doubled
from sdjax.nn.linear import linear
from sdjax.nn.parameter import Init, check_known, own_parameters, path_of


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP ViT-L (openai/CLIP, model.py)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016), where `jax.nn.gelu` alone would approximate by tanh.

    By erf, in float32, as torch has it; the erfc of `jax.nn.gelu` keeps more digits of very small results and takes
    twice as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def kernel_and_bias(shape: Sequence[int], use_bias: bool = True) -> dict[str, tuple[Init, Sequence[int]]]:
    """What `own_parameters` is asked for by a layer with a kernel of that shape, whose last axis goes out."""
    kernel: tuple[Init, Sequence[int]] = (nn.initializers.lecun_normal(), shape)
    return {"kernel": kernel} | ({"bias": (nn.initializers.zeros, shape[-1:])} if use_bias else {})


class Dense(nn.Module):
    """y = x W + b over the last axis; W is `[in, out]`, the transpose of torch's."""

    features: int
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        params = own_parameters(self, **kernel_and_bias((x.shape[-1], self.features), self.use_bias))
        return linear(params, x, self.dtype, path_of(self))


class Embed(nn.Module):
    """Row i of a table of `count` rows for every id i: int `...` -> `... features`."""

    count: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        params = own_parameters(self, embedding=(init, (self.count, self.features)))
        check_known(params, ("embedding",), path_of(self))
        return jnp.take(params["embedding"].astype(self.dtype), ids, axis=0)


class Conv(nn.Module):
    """A square 2-d convolution, `b h w c -> b h w features`, with torch's symmetric padding unless `padding` says more.

    A 1 x 1 convolution runs as a matrix product: the same numbers, and it takes the fast path of every backend.
    With `doubled` (size 3 only) the picture is enlarged to `b 2h 2w c` first, by nearest neighbour.
    """

    features: int
    dtype: DTypeLike
    size: int = 3
    stride: int = 1
    padding: Padding | None = None
    doubled: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        params = own_parameters(self, **kernel_and_bias(shape, self.use_bias))
        return linear(params, x, self.dtype, path_of(self), self._product)

    def _product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.size == 1:
            return jnp.dot(x, kernel[0, 0])
        if self.doubled and on_cpu():
            return convolve_doubled(x, kernel)
        if self.doubled:
            x = nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
        pad = self.size // 2
        return convolve(x, kernel, self.stride, self.padding or ((pad, pad), (pad, pad)))


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes `b h w c` to `size` as torch's "nearest" does: output pixel i reads input pixel floor(i * in / out).

    `jax.image.resize(method="nearest")` reads pixel centres instead and differs wherever the ratio is not 2 upwards.
    """
    b, h, w, c = x.shape
    if size == (2 * h, 2 * w):
        return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    rows = jnp.arange(size[0]) * h // size[0]
    columns = jnp.arange(size[1]) * w // size[1]
    return x[:, rows][:, :, columns]


Moments = tuple[jax.Array, jax.Array]  # mean and variance of each group of each picture, `b g` both, float32


class GroupNorm(nn.Module):
    """Group normalisation over `h w` and the channels of a group (Wu & He 2018), statistics in float32.

    The statistics and the learned scale are folded into one multiplier and one offset per channel, so that the
    picture itself is read once more and not three times. x may be a part of a picture, `moments` those of the whole.
    """

    groups: int
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, moments: Moments | None = None) -> jax.Array:
        channels = x.shape[-1]
        scale, bias = _scale_and_bias(self, channels)
        mean, variance = self._moments(x) if moments is None else moments
        x = x.astype(jnp.float32)
        mean, inverse = (part[:, None, :, None] for part in (mean, jax.lax.rsqrt(variance + self.eps)))
        per_group = (x.shape[0], 1, self.groups, channels // self.groups)
        multiplier = inverse * scale.reshape(1, 1, *per_group[2:])
        offset = bias.reshape(1, 1, *per_group[2:]) - mean * multiplier
        per_channel = (x.shape[0],) + (1,) * (x.ndim - 2) + (channels,)
        y = x * multiplier.reshape(per_channel) + offset.reshape(per_channel)
        return y.astype(self.dtype)

    def _moments(self, x: jax.Array) -> Moments:
        """Of x itself, in one pass over it where it is of 16 bits, else in two."""
        b, shares = x.shape[0], (x.shape[0], self.groups, -1)
        narrow, x = x.dtype.itemsize < 4, x.astype(jnp.float32).reshape(b, -1, x.shape[-1])
        if narrow:
            # What float32 loses of E[x^2] - E[x]^2, 16 bits have not had: std is lost in them where |mean| / std > 2^8.
            mean, square = (jnp.mean(sums, axis=1).reshape(shares).mean(-1) for sums in (x, jnp.square(x)))
            return mean, jnp.maximum(square - jnp.square(mean), 0.0)
        grouped = x.reshape(b, -1, self.groups, x.shape[-1] // self.groups)
        mean = jnp.mean(grouped, axis=(1, 3))
        # E[x^2] - E[x]^2 would lose the digits that parity with torch needs when |mean| >> std.
        return mean, jnp.mean(jnp.square(grouped - mean[:, None, :, None]), axis=(1, 3))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), statistics in float32."""

    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = _scale_and_bias(self, x.shape[-1])
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


def _scale_and_bias(norm: nn.Module, channels: int) -> tuple[jax.Array, jax.Array]:
    """A norm's parameters, float32 `channels` each. Raises ValueError where it was given others."""
    wanted = {"scale": (nn.initializers.ones, (channels,)), "bias": (nn.initializers.zeros, (channels,))}
    params = own_parameters(norm, **wanted)
    check_known(params, tuple(wanted), path_of(norm))
    return params["scale"].astype(jnp.float32), params["bias"].astype(jnp.float32)


def timestep_embedding(
    t: jax.Array, features: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> jax.Array:
    """Sinusoids of the timestep, `b -> b d`, float32 (Ho et al. 2020; Vaswani et al. 2017, section 3.5).

    `t` is in training steps (0 to 999) and may be fractional, as Euler's linspace spacing makes it. Frequencies are
    10000^(-i / (d/2 - freq_shift)); cosines come first where `flip_sin_to_cos`, as in every Stable Diffusion U-Net.
    """
    half = features // 2
    exponent = -jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = t.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    embedding = jnp.concatenate(parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


class TimestepMlp(nn.Module):
    """The two-layer MLP that a sinusoidal embedding goes through: `b d -> b features`.

    `condition` is the guidance embedding of distilled U-Nets (`time_cond_proj_dim`), added before the first layer.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        if condition is not None:
            x = x + Dense(x.shape[-1], self.dtype, use_bias=False, name="cond_proj")(condition)
        x = jax.nn.silu(Dense(self.features, self.dtype, name="linear_1")(x))
        return Dense(self.features, self.dtype, name="linear_2")(x)
