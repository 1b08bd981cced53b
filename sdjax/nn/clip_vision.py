"""CLIP's image encoder (Radford et al. 2021; a ViT, Dosovitskiy et al. 2020, arXiv:2010.11929).

A picture's patches and a class token go through the layers that the text encoder has too, every token seeing all; the
class token, normalised and projected, is the picture's place in the space that CLIP's texts are projected to. All
tokens as they are before the last layer tell more of the picture: some image prompts are made of them. Names follow
transformers' `CLIPVisionModelWithProjection`, the misspelt `pre_layrnorm` included.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ClipVisionConfig
from sdjax.nn.clip import EncoderLayer
from sdjax.nn.layers import Conv, Dense, Embed, LayerNorm
from sdjax.nn.parameter import parameter


class ClipVisionOutput(NamedTuple):
    """What an image encoder makes of b pictures, float32."""

    embedding: jax.Array  # `b d`, the class token, normalised and projected
    states: jax.Array  # `b 1+l e`, all tokens before the last layer: transformers' `hidden_states[-2]`


class ClipVisionEncoder(nn.Module):
    """Normalised pixels `b H W 3` of the config's size -> the pictures' embeddings `b d`, float32."""

    config: ClipVisionConfig
    dtype: DTypeLike = jnp.float32

    def __call__(self, pixels: jax.Array) -> jax.Array:
        return self.outputs(pixels).embedding

    @nn.compact
    def outputs(self, pixels: jax.Array) -> ClipVisionOutput:
        """The embeddings, and the tokens that they come from."""
        pooled, states = VisionTransformer(self.config, self.dtype, name="vision_model")(pixels)
        projection = Dense(self.config.projection_dim, self.dtype, use_bias=False, name="visual_projection")
        return ClipVisionOutput(projection(pooled).astype(jnp.float32), states.astype(jnp.float32))


class VisionTransformer(nn.Module):
    """Embeddings, norm, layers, norm of the class token: `b H W 3` -> (that, `b e`; all before the last layer)."""

    config: ClipVisionConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        config = self.config
        x = PatchEmbeddings(config, self.dtype, name="embeddings")(pixels)
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="pre_layrnorm")(x)
        before_last = x
        for i in range(config.num_hidden_layers):
            before_last = x
            x = EncoderLayer(config, self.dtype, causal=False, name=f"encoder.layers.{i}")(x)
        return LayerNorm(config.layer_norm_eps, self.dtype, name="post_layernorm")(x[:, 0]), before_last


class PatchEmbeddings(nn.Module):
    """A class token and the patches, with their places: `b H W 3 -> b 1+l d`."""

    config: ClipVisionConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        width, patch = self.config.hidden_size, self.config.patch_size
        first = parameter(self, "class_embedding", nn.initializers.normal(0.02), (width,)).astype(self.dtype)
        cut = Conv(width, self.dtype, patch, patch, ((0, 0), (0, 0)), use_bias=False, name="patch_embedding")
        patches = cut(pixels)
        b = pixels.shape[0]
        tokens = jnp.concatenate([jnp.broadcast_to(first, (b, 1, width)), patches.reshape(b, -1, width)], axis=1)
        places = Embed(tokens.shape[1], width, self.dtype, name="position_embedding")
        return tokens + places(jnp.arange(tokens.shape[1]))[None]
