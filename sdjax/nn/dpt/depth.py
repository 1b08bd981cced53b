"""DPT-hybrid (MiDaS 3), which tells how near everything in a picture is (Ranftl et al. 2021, arXiv:2103.13413).

    pixels -> backbone (`bit`) -> patches -> ViT -> reassembled as pictures of four sizes -> fused -> inverse depth

The two larger of the four are the backbone's own first stages, the two smaller ones hidden states of the ViT, to every
token of which the class token's is joined and projected ("readout"). Fusion starts from the smallest and doubles.
Names follow transformers' `DPTForDepthEstimation`, whose checkpoints also hold a final norm and one residual unit that
nothing uses; so they are here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import DepthConfig
from sdjax.nn.attention import attention, split_heads
from sdjax.nn.dpt.bit import Backbone
from sdjax.nn.layers import Conv, Dense, LayerNorm, gelu
from sdjax.nn.parameter import parameter
from sdjax.nn.resize import bilinear

MULTIPLE = 32  # of which a side must be one
HEAD = 32  # channels of the last but one layer


class DepthNetwork(nn.Module):
    """Normalised pixels `b H W 3`, sides multiples of 32 -> inverse depth `b H W`, float32, >= 0; larger is nearer."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        if pixels.shape[1] % MULTIPLE or pixels.shape[2] % MULTIPLE:
            raise ValueError(f"height and width must be multiples of {MULTIPLE}, not {list(pixels.shape[1:3])}")
        config, patch = self.config, self.config.patch_size
        grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
        tokens, larger = Embeddings(config, self.dtype, name="dpt.embeddings")(pixels)
        taken = []
        for i in range(config.num_hidden_layers):
            tokens = Layer(config, self.dtype, name=f"dpt.encoder.layer.{i}")(tokens)
            taken += [tokens] * (i in config.taken)
        LayerNorm(config.layer_norm_eps, self.dtype, name="dpt.layernorm")(tokens)
        smaller = Reassemble(config, grid, self.dtype, name="neck.reassemble_stage")(taken)
        fused = self._fused(0, smaller.pop(), None)
        for k, x in enumerate((*smaller, *reversed(larger)), 1):
            fused = self._fused(k, x, fused)
        return self._head(fused)

    def _fused(self, k: int, x: jax.Array, fused: jax.Array | None) -> jax.Array:
        """The k-th of the four sizes, from the smallest on, joined to what has been fused."""
        features = self.config.fusion_hidden_size
        x = Conv(features, self.dtype, use_bias=False, name=f"neck.convs.{3 - k}")(x)
        return Fusion(features, self.dtype, name=f"neck.fusion_stage.layers.{k}")(x, fused)

    def _head(self, x: jax.Array) -> jax.Array:
        x = Conv(self.config.fusion_hidden_size // 2, self.dtype, name="head.head.0")(x)
        x = _doubled(x)
        x = jax.nn.relu(Conv(HEAD, self.dtype, name="head.head.2")(x))
        return jax.nn.relu(Conv(1, self.dtype, size=1, name="head.head.4")(x))[..., 0].astype(jnp.float32)


class Embeddings(nn.Module):
    """Pixels `b H W 3` -> (tokens `b 1+l d` with their places, the backbone's first two stages)."""

    config: DepthConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        config, width, side = self.config, self.config.hidden_size, self.config.image_size // self.config.patch_size
        *larger, last = Backbone(config, self.dtype, name="backbone.bit")(pixels)
        patches = Conv(width, self.dtype, size=1, name="projection")(last)
        b, h, w, _ = patches.shape
        first = parameter(self, "cls_token", nn.initializers.zeros, (1, 1, width))
        places = parameter(self, "position_embeddings", nn.initializers.zeros, (1, side * side + 1, width))
        grid = bilinear(places[:, 1:].reshape(1, side, side, width), (h, w)).reshape(1, h * w, width)
        first = jnp.broadcast_to(first + places[:, :1], (b, 1, width)).astype(self.dtype)
        return jnp.concatenate([first, patches.reshape(b, h * w, width) + grid.astype(self.dtype)], axis=1), larger


class Layer(nn.Module):
    """One pre-norm layer of a ViT: `b l d -> b l d`."""

    config: DepthConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, width = self.config, self.config.hidden_size
        normed = LayerNorm(config.layer_norm_eps, self.dtype, name="layernorm_before")(x)
        q, k, v = (
            split_heads(
                Dense(width, self.dtype, config.qkv_bias, name=f"attention.attention.{part}")(normed),
                config.num_attention_heads,
            )
            for part in ("query", "key", "value")
        )
        x = x + Dense(width, self.dtype, name="attention.output.dense")(attention(q, k, v).reshape(x.shape))
        normed = LayerNorm(config.layer_norm_eps, self.dtype, name="layernorm_after")(x)
        wide = gelu(Dense(config.intermediate_size, self.dtype, name="intermediate.dense")(normed))
        return x + Dense(width, self.dtype, name="output.dense")(wide)


class Reassemble(nn.Module):
    """Two hidden states of the ViT, `b 1+l d`, as pictures: the third of the four sizes (1/16), the fourth (1/32)."""

    config: DepthConfig
    grid: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, taken: list[jax.Array]) -> list[jax.Array]:
        third, fourth = (self._picture(tokens, i) for i, tokens in zip((2, 3), taken, strict=True))
        return [third, Conv(fourth.shape[-1], self.dtype, stride=2, name="layers.3.resize")(fourth)]

    def _picture(self, tokens: jax.Array, i: int) -> jax.Array:
        patches = tokens[:, 1:]
        both = jnp.concatenate([patches, jnp.broadcast_to(tokens[:, :1], patches.shape)], axis=-1)
        x = gelu(Dense(tokens.shape[-1], self.dtype, name=f"readout_projects.{i}.0")(both))
        x = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        return Conv(self.config.neck_hidden_sizes[i], self.dtype, size=1, name=f"layers.{i}.projection")(x)


class Fusion(nn.Module):
    """What has been fused so far, of x's size or None, and x `b h w c` -> `b 2h 2w c`."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, fused: jax.Array | None) -> jax.Array:
        beside = Residual(self.features, self.dtype, name="residual_layer1")(x)  # the smallest has nothing to join
        x = x if fused is None else fused + beside
        x = Residual(self.features, self.dtype, name="residual_layer2")(x)
        return Conv(self.features, self.dtype, size=1, name="projection")(_doubled(x))


class Residual(nn.Module):
    """Two convolutions, each after a ReLU, around a shortcut: `b h w c -> b h w c`."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Conv(self.features, self.dtype, name="convolution1")(jax.nn.relu(x))
        return x + Conv(self.features, self.dtype, name="convolution2")(jax.nn.relu(h))


def _doubled(x: jax.Array) -> jax.Array:
    return bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
