"""The U-Net that predicts the noise (Rombach et al. 2022), every block of SD 1.x, 2.x and SDXL, from its config alone.

The picture goes down through levels of resnets (and transformers, where the level's type says so), each but the last
halved, through a middle, and up again; every output on the way down is concatenated to an input on the way up. The
time enters each resnet, the text each transformer.

What conditions it comes as data, whole, in one object (`conditioning`): the text; what is added to the time
(`class_labels` of the x4 upscaler and unCLIP, `added`, SDXL's pooled text and micro-conditioning ids, `guidance`, the
embedded scale of distilled U-Nets); and `channels` (mask, depth, masked picture), which stand beside x from the first
convolution on. What other networks add inside it comes in another (`injections`).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import UNetConfig
from sdjax.core.tree import modules_named
from sdjax.nn.attention import Transformer2D
from sdjax.nn.conditioning import Conditions, Signals, Time
from sdjax.nn.injections import NOTHING, Injections
from sdjax.nn.layers import ACTIVATIONS, Conv, Embed, GroupNorm, TimestepMlp, timestep_embedding
from sdjax.nn.linear import linear
from sdjax.nn.resnet import Downsample, ResnetBlock, Upsample


class UNet(nn.Module):
    """Noise (or velocity) prediction: x `b h w c`, t `b` and conditions -> `b h w out_channels`, float32.

    `t` is in training steps and may be fractional; it may also be what `time_shifts` made from it beforehand. So may
    the conditions' text be the keys and values of `attention.cross_keys_values`, or in pieces.

    remat: in training, to compute every resnet and transformer block again on the way back in place of keeping what it
    held (Chen et al. 2016, arXiv:1604.06174); the numbers are the same.

    Raises ValueError where a condition is missing that this U-Net was trained with.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: Time, conditions: Conditions, injected: Injections = NOTHING) -> jax.Array:
        config = self.config
        time = t if isinstance(t, Mapping) else self._embed_time(t, conditions)
        signals = Signals(time, conditions, injected)
        if conditions.channels is not None:
            x = jnp.concatenate([x, conditions.channels], axis=-1)
        x = Conv(config.block_out_channels[0], self.dtype, name="conv_in")(x)
        skips = [x]
        for i in range(config.levels):
            x, outputs = DownBlock(config, i, self.dtype, self.remat, name=f"down_blocks.{i}")(x, signals)
            skips += outputs
        middle = MidBlock(config, self.dtype, self.remat, name="mid_block")
        x = _plus(middle(x, signals), injected.level(config.levels))
        x = _plus(x, injected.middle)
        if injected.skips is not None:
            skips = [_plus(*pair) for pair in zip(skips, injected.skips, strict=True)]
        for i in range(config.levels):
            count = config.layers_per_block[-1 - i] + 1
            skips, used = skips[:-count], skips[-count:]
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            x = UpBlock(config, i, self.dtype, self.remat, name=f"up_blocks.{i}")(x, used, signals, size)
        x = GroupNorm(config.norm_num_groups, config.norm_eps, self.dtype, name="conv_norm_out")(x)
        x = Conv(config.out_channels, self.dtype, name="conv_out")(ACTIVATIONS[config.act_fn](x))
        return x.astype(jnp.float32)

    def _embed_time(self, t: jax.Array, conditions: Conditions) -> jax.Array:
        embed = TimeEmbedding(self.config, self.dtype, name=None)
        nn.share_scope(self, embed)
        return embed(t, conditions)


class TimeEmbedding(nn.Module):
    """The sum of all embeddings that enter every resnet: t `b` and the conditions beside it -> `b d`.

    The checkpoint holds its layers beside the U-Net's blocks: hence the scope that `UNet` shares with it.

    Raises ValueError where a condition is missing that this U-Net was trained with.
    """

    config: UNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, t: jax.Array, conditions: Conditions) -> jax.Array:
        config, width = self.config, 4 * self.config.block_out_channels[0]
        added, guidance = conditions.added, conditions.guidance
        sinusoids = self._sinusoids(t, config.block_out_channels[0])
        if config.time_cond_proj_dim is None:
            guidance = None
        time = TimestepMlp(width, self.dtype, name="time_embedding")(sinusoids, guidance)
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            time = time + self._embed_class(conditions.class_labels, width)
        if config.addition_time_embed_dim is not None and config.addition_embed_type == "text_time":
            if added is None:
                raise ValueError("this U-Net is conditioned on pooled text and sizes (SDXL): give added=Added(...)")
            ids = self._sinusoids(added.time_ids.reshape(-1), config.addition_time_embed_dim)
            ids = ids.reshape(t.shape[0], added.time_ids.shape[1] * config.addition_time_embed_dim)
            joined = jnp.concatenate([added.pooled, ids], axis=-1)
            time = time + TimestepMlp(width, self.dtype, name="add_embedding")(joined)
        return time

    def _sinusoids(self, t: jax.Array, features: int) -> jax.Array:
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        return timestep_embedding(t, features, flip_sin_to_cos=flip, freq_shift=shift)

    def _embed_class(self, labels: jax.Array | None, width: int) -> jax.Array:
        config = self.config
        if labels is None:
            raise ValueError("this U-Net is conditioned on a class (or noise level): give class_labels=")
        if config.class_embed_type is None and config.num_class_embeds is not None:
            return Embed(config.num_class_embeds, width, self.dtype, name="class_embedding")(labels)
        if config.class_embed_type == "timestep":
            labels = self._sinusoids(labels, config.block_out_channels[0])
        return TimestepMlp(width, self.dtype, name="class_embedding")(labels)


def time_shifts(
    config: UNetConfig, dtype: DTypeLike, params: Mapping, t: jax.Array, conditions: Conditions
) -> dict[str, jax.Array]:
    """What the time adds in every resnet, {its path: `b c`}, for timesteps `b`: all of it is known before a run.

    conditions: for as many pictures; those of `Conditions.beside_time` are read. Raises ValueError as `linear` does.
    """
    return shifts_of(params, TimeEmbedding(config, dtype).apply({"params": params}, t, conditions), dtype)


def shifts_of(params: Mapping, embedded: jax.Array, dtype: DTypeLike) -> dict[str, jax.Array]:
    """What the time `b d`, embedded, adds in every resnet of a network: {its path: `b c`}."""
    time = jax.nn.silu(embedded)
    return {
        path.removesuffix(".time_emb_proj"): linear(layer, time, dtype, path)
        for path, layer in modules_named(params, ("time_emb_proj",))
    }


def _resnet(config: UNetConfig, width: int, dtype: DTypeLike, remat: bool, name: str) -> ResnetBlock:
    kind = nn.remat(ResnetBlock) if remat else ResnetBlock
    return kind(width, config.norm_num_groups, config.norm_eps, dtype, name=name)


def _plus(x: jax.Array, other: jax.Array | None) -> jax.Array:
    """x `b h w c`, and what is added to it in its dtype, where anything is."""
    return x if other is None else x + other.astype(x.dtype)


def _transformer(
    config: UNetConfig, level: int, layers: int, dtype: DTypeLike, remat: bool, name: str, only_cross: bool
) -> Transformer2D:
    return Transformer2D(
        heads=config.heads[level],
        layers=layers,
        groups=config.norm_num_groups,
        linear_projection=config.use_linear_projection,
        dtype=dtype,
        upcast=config.upcast_attention,
        only_cross=only_cross,
        remat=remat,
        name=name,
    )


class DownBlock(nn.Module):
    """One level on the way down: `b h w c` -> (`b h/2 w/2 c'`, the outputs that the way up will need).

    What is injected on the level comes after its last transformer; where it has none, at its end (as T2I-Adapters were
    trained in diffusers, models/unets/unet_2d_condition.py).
    """

    config: UNetConfig
    level: int
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals) -> tuple[jax.Array, list[jax.Array]]:
        config, level = self.config, self.level
        width, count, injected = config.block_out_channels[level], config.layers_per_block[level], signals.injected
        attends, halves = config.down_block_types[level] == "CrossAttnDownBlock2D", level < config.levels - 1
        outputs = []
        for j in range(count):
            x = _resnet(config, width, self.dtype, self.remat, f"resnets.{j}")(x, signals)
            if attends:
                layers, only_cross = config.transformer_layers[level][j], config.only_cross_attention[level]
                x = _transformer(config, level, layers, self.dtype, self.remat, f"attentions.{j}", only_cross)(
                    x, signals
                )
            if j == count - 1 and (attends or not halves):
                x = _plus(x, injected.level(level))
            outputs.append(x)
        if halves:
            x = Downsample(width, self.dtype, name="downsamplers.0")(x)
            outputs.append(x if attends else _plus(x, injected.level(level)))
        return outputs[-1], outputs


class MidBlock(nn.Module):
    """Resnet, transformer, resnet at the lowest resolution, `b h w c -> b h w c`; or the first alone, or none."""

    config: UNetConfig
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, signals: Signals) -> jax.Array:
        config = self.config
        if config.mid_block_type is None:
            return x
        width = config.block_out_channels[-1]
        x = _resnet(config, width, self.dtype, self.remat, "resnets.0")(x, signals)
        if config.mid_block_type == "UNetMidBlock2D":
            return x
        # The middle always has self-attention, also where the levels are cross-only.
        layers = config.transformer_layers[-1][0]
        x = _transformer(config, -1, layers, self.dtype, self.remat, "attentions.0", only_cross=False)(x, signals)
        return _resnet(config, width, self.dtype, self.remat, "resnets.1")(x, signals)


class UpBlock(nn.Module):
    """One level on the way up; `skips` are the matching outputs of the way down, the last one used first.

    `size` is the height and width of the next finer level, which is not always twice this one's (65 -> 33 -> 65).
    """

    config: UNetConfig
    index: int  # 0 is the coarsest, the reverse of the level's number on the way down
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array], signals: Signals, size: tuple[int, int] | None
    ) -> jax.Array:
        config, level = self.config, self.config.levels - 1 - self.index
        width = config.block_out_channels[level]
        for j, skip in enumerate(reversed(skips)):
            joined = jnp.concatenate([x, skip], axis=-1)
            x = _resnet(config, width, self.dtype, self.remat, f"resnets.{j}")(joined, signals)
            if config.up_block_types[self.index] == "CrossAttnUpBlock2D":
                layers, only_cross = config.up_transformer_layers[self.index][j], config.only_cross_attention[level]
                x = _transformer(config, level, layers, self.dtype, self.remat, f"attentions.{j}", only_cross)(
                    x, signals
                )
        if size is not None:
            x = Upsample(width, self.dtype, name="upsamplers.0")(x, size)
        return x
