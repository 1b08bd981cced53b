"""The autoencoder between pixels and latents (Kingma & Welling 2014; Rombach et al. 2022, section 3.1).

    encode: pixels `b H W 3` in [-1, 1] -> mean and log-variance `b h w c` of a diagonal Gaussian
    decode: latents `b h w c` -> pixels `b H W 3`

with H = f h for f = 2^(levels - 1), 8 in Stable Diffusion. Latents here are the VAE's own; the scaling factor that
makes them unit-variance for the U-Net is applied by the pipeline.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Layer:
    """One step of the encoder or the decoder: x `b h w c` -> `b h' w' width`.

    kind: "conv", "resnet", "up" (doubles the picture), "down" (halves it), "middle" (sees all of it), "head" (norm,
    SiLU, convolution). name: what the checkpoint calls its parameters; a head's are conv_norm_out and conv_out.
    """

    kind: str
    name: str
    width: int


def encoder_layers(config: VaeConfig) -> tuple[Layer, ...]:
    """From pixels `b H W 3` to moments `b h w 2c`."""
    widths = config.block_out_channels
    layers = [Layer("conv", "conv_in", widths[0])]
    for i, width in enumerate(widths):
        layers += [Layer("resnet", f"down_blocks.{i}.resnets.{j}", width) for j in range(config.layers_per_block)]
        if i < len(widths) - 1:
            layers.append(Layer("down", f"down_blocks.{i}.downsamplers.0", width))
    return *layers, Layer("middle", "mid_block", widths[-1]), Layer("head", "conv_out", 2 * config.latent_channels)


def decoder_layers(config: VaeConfig) -> tuple[Layer, ...]:
    """From latents `b h w c` to pixels `b H W 3`."""
    widths = config.block_out_channels[::-1]
    layers = [Layer("conv", "conv_in", widths[0]), Layer("middle", "mid_block", widths[0])]
    for i, width in enumerate(widths):
        layers += [Layer("resnet", f"up_blocks.{i}.resnets.{j}", width) for j in range(config.layers_per_block + 1)]
        if i < len(widths) - 1:
            layers.append(Layer("up", f"up_blocks.{i}.upsamplers.0", width))
    return *layers, Layer("head", "conv_out", config.out_channels)


class Autoencoder(nn.Module):
    """Encoder and decoder over one parameter tree, as diffusers' `AutoencoderKL` names it."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = Layers(encoder_layers(self.config), self.config, self.dtype)
        self.decoder = Layers(decoder_layers(self.config), self.config, self.dtype)
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
        return self.posterior(self.encoder(pixels))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents `b h w c` (unscaled) -> pixels `b H W 3`, float32, near [-1, 1] but not clipped."""
        return self.decoder(self.entry(latents)).astype(jnp.float32)

    def posterior(self, moments: jax.Array) -> Posterior:
        """What follows the encoder's layers: moments `b h w 2c` -> Posterior `b h w c`."""
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def entry(self, latents: jax.Array) -> jax.Array:
        """What precedes the decoder's layers: latents `b h w c` -> `b h w c`."""
        return self.post_quant_conv(latents) if self.config.use_post_quant_conv else latents


class Layers(nn.Module):
    """Runs the layers of the encoder or the decoder, or `some` of them that follow one another, over `b h w c`."""

    layers: tuple[Layer, ...]
    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, some: tuple[Layer, ...] | None = None) -> jax.Array:
        for layer in self.layers if some is None else some:
            x = self._run(layer, x)
        return x

    def _run(self, layer: Layer, x: jax.Array) -> jax.Array:
        name, width = layer.name, layer.width
        match layer.kind:
            case "resnet":
                return _resnet(self, width, name)(x)
            case "down":
                return Downsample(width, self.dtype, asymmetric=True, name=name)(x)
            case "up":
                return Upsample(width, self.dtype, name=name)(x)
            case "middle":
                return Middle(self.config, self.dtype, name=name)(x)
            case "head":
                norm = GroupNorm(self.config.norm_num_groups, EPS, self.dtype, name="conv_norm_out")
                x = jax.nn.silu(norm(x))
        return Conv(width, self.dtype, name=name)(x)


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


def _resnet(module: Layers | Middle, width: int, name: str) -> ResnetBlock:
    return ResnetBlock(width, module.config.norm_num_groups, EPS, module.dtype, name=name)
