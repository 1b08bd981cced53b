"""The autoencoder between pixels and latents (Kingma & Welling 2014; Rombach et al. 2022, section 3.1).

    encode: pixels `b H W 3` in [-1, 1] -> mean and log-variance `b h w c` of a diagonal Gaussian
    decode: latents `b h w c` -> pixels `b H W 3`

with H = f h for f = 2^(levels - 1), 8 in Stable Diffusion. Latents here are the VAE's own; the scaling factor that
makes them unit-variance for the U-Net is applied by the pipeline.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import VaeConfig
from sdjax.nn.attention import Attention
from sdjax.nn.layers import Conv, GroupNorm
from sdjax.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # every norm of the VAE, unlike the U-Net's resnets


class Posterior(NamedTuple):
    """The diagonal Gaussian that the encoder gives, both `b h w c`, float32."""

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """mean + std * noise, `b h w c`, for unit Gaussian noise of that shape."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


class Autoencoder(nn.Module):
    """Encoder and decoder over one parameter tree, as diffusers' `AutoencoderKL` names it."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        channels = self.config.latent_channels
        if self.config.use_quant_conv:
            self.quant_conv = Conv(2 * channels, self.dtype, size=1)
        if self.config.use_post_quant_conv:
            self.post_quant_conv = Conv(channels, self.dtype, size=1)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes and decodes the mean: initialises every parameter. `b H W 3 -> b H W 3`."""
        return self.decode(self.encode(pixels).mean)

    def encode(self, pixels: jax.Array) -> Posterior:
        """Pixels `b H W 3` in [-1, 1] -> Posterior `b h w c`; the log-variance is clamped to [-30, 20]."""
        moments = self.encoder(pixels)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` (unscaled) -> pixels `b H W 3`, float32, near [-1, 1] but not clipped."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)


class Encoder(nn.Module):
    """Pixels `b H W 3` -> moments `b h w 2c`."""

    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, widths = self.config, self.config.block_out_channels
        x = Conv(widths[0], self.dtype, name="conv_in")(x)
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block):
                x = _resnet(self, width, f"down_blocks.{i}.resnets.{j}")(x)
            if i < len(widths) - 1:
                name = f"down_blocks.{i}.downsamplers.0"
                x = Downsample(width, self.dtype, asymmetric=True, name=name)(x)
        x = Middle(config, self.dtype, name="mid_block")(x)
        x = jax.nn.silu(GroupNorm(config.norm_num_groups, EPS, self.dtype, name="conv_norm_out")(x))
        return Conv(2 * config.latent_channels, self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents `b h w c` -> pixels `b H W 3`."""

    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, widths = self.config, self.config.block_out_channels[::-1]
        x = Conv(widths[0], self.dtype, name="conv_in")(x)
        x = Middle(config, self.dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block + 1):
                x = _resnet(self, width, f"up_blocks.{i}.resnets.{j}")(x)
            if i < len(widths) - 1:
                x = Upsample(width, self.dtype, name=f"up_blocks.{i}.upsamplers.0")(x)
        x = jax.nn.silu(GroupNorm(config.norm_num_groups, EPS, self.dtype, name="conv_norm_out")(x))
        return Conv(config.out_channels, self.dtype, name="conv_out")(x)


class Middle(nn.Module):
    """Resnet, attention with a single head over all pixels, resnet, at the lowest resolution: `b h w c -> b h w c`."""

    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _resnet(self, x.shape[-1], "resnets.0")(x)
        if self.config.mid_block_add_attention:
            x = PixelAttention(self.config.norm_num_groups, self.dtype, name="attentions.0")(x)
        return _resnet(self, x.shape[-1], "resnets.1")(x)


class PixelAttention(nn.Module):
    """Self-attention over the pixels of `b h w c`, after a GroupNorm and around a residual.

    The checkpoint holds the projections beside the norm, not in a module of their own: hence the shared scope.
    """

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        tokens = GroupNorm(self.groups, EPS, self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        attend = Attention(heads=1, dtype=self.dtype, qkv_bias=True, name=None)
        nn.share_scope(self, attend)
        return x + attend(tokens).reshape(b, h, w, c)


def _resnet(module: Encoder | Decoder | Middle, width: int, name: str) -> ResnetBlock:
    return ResnetBlock(width, module.config.norm_num_groups, EPS, module.dtype, name=name)
