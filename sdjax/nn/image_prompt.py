"""Image prompts: a picture as tokens beside the text's (IP-Adapter, Ye et al. 2023, arXiv:2308.06721).

    pixels --image encoder--> embedding or states --projection--> tokens --to_k_ip, to_v_ip--> keys and values      (1)

An image encoder is CLIP's (`clip_vision`). The projection is one of three kinds (`config.image_prompt`): a linear layer
and a norm make a few tokens of the embedding; a resampler (Alayrac et al. 2022, arXiv:2204.14198), whose learned
latents attend to the states before the encoder's last layer, makes some more; two layers and a norm take each state by
itself. Names follow diffusers' `ImageProjection`, `IPAdapterPlusImageProjection` and `IPAdapterFullImageProjection`.

Every cross-attention of the U-Net has layers of its own for keys and values of these tokens. Like the text's they are
the same at every step and made once, before the run (`image_keys_values`).
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ClipVisionConfig
from sdjax.config.image_prompt import BASE, FULL, ImagePromptConfig, ResamplerConfig
from sdjax.core.keys import settled
from sdjax.core.tree import Params, modules_named
from sdjax.nn.attention import attention, split_heads
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.layers import Dense, LayerNorm, gelu
from sdjax.nn.linear import linear
from sdjax.nn.parameter import parameter, shapes

EPS = 1e-5  # of every LayerNorm here
_PLACES = ("down_blocks", "up_blocks", "mid_block")  # the order in which files count the U-Net's attention


class ImagePromptEncoder(nn.Module):
    """A picture's tokens: normalised pixels `b H W 3` of the encoder's size -> `b m d`, float32.

    Its parameters are those of an image encoder, "image_encoder", and of a projection, "image_proj".
    """

    vision: ClipVisionConfig
    config: ImagePromptConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.image_encoder = ClipVisionEncoder(self.vision, self.dtype)
        self.image_proj = projection(self.config, self.dtype)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        encoded = self.image_encoder.outputs(pixels)
        return self.image_proj(encoded.states if self.config.takes_states else encoded.embedding)

    def unconditional(self) -> jax.Array:
        """The tokens `1 m d` that stand for no picture, in the half of guidance that has no prompt.

        Of an embedding of zeros, or of the states of pixels that are zero when normalised (which is no black picture).
        Source: diffusers' StableDiffusionPipeline.encode_image; tencent-ailab/IP-Adapter, get_image_embeds.
        """
        if not self.config.takes_states:
            return self.image_proj(jnp.zeros((1, self.config.image_dim), jnp.float32))
        side = self.vision.image_size
        return self(jnp.zeros((1, side, side, 3), jnp.float32))


def projection(config: ImagePromptConfig, dtype: DTypeLike) -> nn.Module:
    """The module that makes tokens `b m d`, float32, of an embedding `b e` or of states `b l e`."""
    if config.kind == BASE:
        return ImageProjection(config, dtype)
    return FullImageProjection(config, dtype) if config.kind == FULL else Resampler(config, dtype)


def projection_shapes(config: ImagePromptConfig) -> Params:
    """The shapes of a projection's parameters: nested dict of `jax.ShapeDtypeStruct`."""
    given = (1, 1, config.image_dim) if config.takes_states else (1, config.image_dim)
    with settled():
        return shapes(projection(config, jnp.float32), jax.ShapeDtypeStruct(given, jnp.float32))


class ImageProjection(nn.Module):
    """An embedding `b e` -> tokens `b m d`, float32."""

    config: ImagePromptConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        tokens, width = self.config.tokens or 1, self.config.cross_attention_dim
        x = Dense(tokens * width, self.dtype, name="image_embeds")(embedding)
        x = LayerNorm(EPS, self.dtype, name="norm")(x.reshape(-1, tokens, width))
        return x.astype(jnp.float32)


class FullImageProjection(nn.Module):
    """States `b l e` -> as many tokens `b l d`, float32."""

    config: ImagePromptConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        x = gelu(Dense(states.shape[-1], self.dtype, name="ff.net.0.proj")(states))
        x = Dense(self.config.cross_attention_dim, self.dtype, name="ff.net.2")(x)
        return LayerNorm(EPS, self.dtype, name="norm")(x).astype(jnp.float32)


class Resampler(nn.Module):
    """States `b l e` -> tokens `b m d`, float32: learned latents that gather from the states, layer by layer."""

    config: ImagePromptConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        config, resampler = self.config, self.config.resampler
        assert resampler is not None and config.tokens is not None
        shape = (1, config.tokens, resampler.width)
        latents = parameter(self, "latents", nn.initializers.normal(resampler.width**-0.5), shape)
        latents = jnp.broadcast_to(latents.astype(self.dtype), (states.shape[0], *shape[1:]))
        x = Dense(resampler.width, self.dtype, name="proj_in")(states)
        for i in range(resampler.depth):
            latents = ResamplerLayer(resampler, self.dtype, name=f"layers.{i}")(x, latents)
        latents = Dense(config.cross_attention_dim, self.dtype, name="proj_out")(latents)
        return LayerNorm(EPS, self.dtype, name="norm_out")(latents).astype(jnp.float32)


class ResamplerLayer(nn.Module):
    """Attention to x `b l d` and to themselves, then a feed-forward, each around a residual: latents `b m d`."""

    config: ResamplerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        x = LayerNorm(EPS, self.dtype, name="ln0")(x)
        normed = LayerNorm(EPS, self.dtype, name="ln1")(latents)
        latents = latents + ResamplerAttention(self.config, self.dtype, name="attn")(normed, x)
        hidden = LayerNorm(EPS, self.dtype, name="ff.0")(latents)
        hidden = gelu(Dense(self.config.hidden, self.dtype, use_bias=False, name="ff.1.net.0.proj")(hidden))
        return latents + Dense(self.config.width, self.dtype, use_bias=False, name="ff.1.net.2")(hidden)


class ResamplerAttention(nn.Module):
    """Of latents `b m d` to x `b l d` and to themselves behind it: `b m d`."""

    config: ResamplerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, latents: jax.Array, x: jax.Array) -> jax.Array:
        heads, inner = self.config.heads, self.config.heads * self.config.dim_head
        seen = jnp.concatenate([x, latents], axis=1)
        q, k, v = (
            split_heads(Dense(inner, self.dtype, use_bias=False, name=f"to_{part}")(given), heads)
            for part, given in (("q", latents), ("k", seen), ("v", seen))
        )
        out = attention(q, k, v).reshape(*latents.shape[:2], inner)
        return Dense(latents.shape[-1], self.dtype, use_bias=False, name="to_out.0")(out)


def image_keys_values(params: Mapping, tokens: jax.Array, dtype: DTypeLike) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Keys and values of an image prompt's tokens `b m d` for every cross-attention: {path: (k, v)}, `b m c` each.

    params: `to_k_ip` and `to_v_ip` of each, by its path (see `attention_paths`). Raises ValueError as `linear` does.
    """
    return {
        path: (
            linear(layers["to_k_ip"], tokens, dtype, f"{path}.to_k_ip"),
            linear(layers["to_v_ip"], tokens, dtype, f"{path}.to_v_ip"),
        )
        for path, layers in params.items()
    }


def attention_paths(unet: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of a U-Net's cross-attentions in the order of an adapter's layers: down, up, and the middle last.

    That is the order in which diffusers' U-Net registers its attention processors. unet: its parameters, or shapes.
    """
    return tuple(sorted((path for path, _ in modules_named(unet, ("attn2",))), key=_order))


def _order(path: str) -> tuple[int, list[int]]:
    numbers = [int(number) for number in re.findall(r"\.(\d+)", path)]
    return next((i for i, place in enumerate(_PLACES) if path.startswith(place)), len(_PLACES)), numbers
