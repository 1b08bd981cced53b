"""CLIP's text encoder (Radford et al. 2021): a causal transformer over token ids.

What a diffusion model takes from it differs by family, so everything is returned: the hidden states of every layer
*before* the final norm (SDXL takes the last but one), the last one after it (SD 1.x and 2.x), and the pooled state,
projected where the checkpoint has a projection (SDXL's second encoder).

Padding is not masked: SD's encoders were trained attending to it, and the pad id matters for that reason.
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.nn.attention import attention, split_heads
from sdjax.nn.layers import ACTIVATIONS, Dense, Embed, LayerNorm


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NewWords:
    """Vectors that stand in a row in place of the embeddings of its ids (textual inversion, arXiv:2208.01618).

    Attributes:
      here: bool `.. l`, where they stand. vectors: float32 `.. l d`, anything elsewhere.
    """

    here: jax.Array | np.ndarray
    vectors: jax.Array | np.ndarray


class ClipTextOutput(NamedTuple):
    """What the encoder gives for token ids `b l`."""

    hidden_states: tuple[jax.Array, ...]  # embeddings, then each layer's output, `b l d`, before the final norm
    last_hidden_state: jax.Array  # `b l d`, after the final norm
    pooled: jax.Array  # `b d`, the end-of-text token after the final norm, projected if the config projects


class ClipTextEncoder(nn.Module):
    """Token ids `b l` (int32) -> ClipTextOutput. The module's tree mirrors transformers' `CLIPTextModel`.

    new: words that the vocabulary does not have, for the same `b l`. The end of the text is told by the ids alone.
    """

    config: ClipTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, new: NewWords | None = None) -> ClipTextOutput:
        hidden_states, last = TextTransformer(self.config, self.dtype, name="text_model")(ids, new)
        pooled = last[jnp.arange(ids.shape[0]), end_of_text(ids, self.config.eos_token_id)]
        if self.config.projection_dim is not None:
            pooled = Dense(self.config.projection_dim, self.dtype, use_bias=False, name="text_projection")(pooled)
        return ClipTextOutput(hidden_states, last, pooled)


def end_of_text(ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Position of the end-of-text token in each row of `b l`.

    Published configs carry `eos_token_id: 2`, a mistake that transformers keeps working by taking the largest id;
    a config with a true id gets its first occurrence (transformers, models/clip/modeling_clip.py). So a vocabulary must
    not grow behind the end-of-text token: a larger id than its own would be taken for it, and SDXL's pooled state with
    it. New words are vectors put in place of ordinary ids.
    """
    return jnp.argmax(ids if eos_token_id == 2 else (ids == eos_token_id).astype(jnp.int32), axis=-1)


class TextTransformer(nn.Module):
    """Embeddings, layers, final norm: ids `b l` -> (hidden states, last hidden state)."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, ids: jax.Array, new: NewWords | None = None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        states = [Embeddings(self.config, self.dtype, name="embeddings")(ids, new)]
        for i in range(self.config.num_hidden_layers):
            states.append(EncoderLayer(self.config, self.dtype, name=f"encoder.layers.{i}")(states[-1]))
        last = LayerNorm(self.config.layer_norm_eps, self.dtype, name="final_layer_norm")(states[-1])
        return tuple(states), last


class Embeddings(nn.Module):
    """Token plus position embedding: ids `b l` -> `b l d`. A new word's vector takes the place of the former alone."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, ids: jax.Array, new: NewWords | None = None) -> jax.Array:
        config = self.config
        tokens = Embed(config.vocab_size, config.hidden_size, self.dtype, name="token_embedding")
        places = Embed(config.max_position_embeddings, config.hidden_size, self.dtype, name="position_embedding")
        found = tokens(ids)
        if new is not None:
            found = jnp.where(new.here[..., None], new.vectors.astype(self.dtype), found)
        return found + places(jnp.arange(ids.shape[1]))[None]


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer of CLIP's encoders, of text (causal) or of pictures: `b l d -> b l d`."""

    config: ClipTextConfig | ClipVisionConfig
    dtype: DTypeLike
    causal: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        eps = self.config.layer_norm_eps
        attend = SelfAttention(self.config.num_attention_heads, self.causal, self.dtype, name="self_attn")
        x = x + attend(LayerNorm(eps, self.dtype, name="layer_norm1")(x))
        return x + Mlp(self.config, self.dtype, name="mlp")(LayerNorm(eps, self.dtype, name="layer_norm2")(x))


class SelfAttention(nn.Module):
    """Self-attention, in which a token sees all, or where it is causal itself and those before: `b l d -> b l d`."""

    heads: int
    causal: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (split_heads(Dense(x.shape[-1], self.dtype, name=f"{part}_proj")(x), self.heads) for part in "qkv")
        return Dense(x.shape[-1], self.dtype, name="out_proj")(attention(q, k, v, causal=self.causal).reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers with the config's activation between them: `b l d -> b l d`."""

    config: ClipTextConfig | ClipVisionConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Dense(self.config.intermediate_size, self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], self.dtype, name="fc2")(ACTIVATIONS[self.config.hidden_act](h))
