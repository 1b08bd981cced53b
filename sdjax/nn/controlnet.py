"""ControlNet: a copy of the U-Net's way down that looks at a picture too (Zhang et al. 2023, arXiv:2302.05543).

    h_0 = conv_in(x) + E(picture),    r_j = Z_j(skip_j),    r_n = Z_n(middle)                               (1)

Skips and middle are those of the copy, begun at h_0; Z are 1 x 1 convolutions that were zero before training. The
U-Net, whose own way down stays as it is, adds r_j to its skips and r_n to its middle. E, at the picture's full size,
is `HintEmbedding`: it depends on no step, so it is computed once a run. A Union (`union`) looks at several pictures,
and knows of each what kind of map it is.

The blocks are the U-Net's own, and so are their names: keys, values and the time's part may be made beforehand, by
`attention.cross_keys_values` and by `controlnet_time_shifts`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config.controlnet import ControlNetConfig
from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Signals, Time
from sdjax.nn.layers import Conv, TimestepMlp, timestep_embedding
from sdjax.nn.unet import DownBlock, MidBlock, TimeEmbedding, shifts_of
from sdjax.nn.union import UnionFusion

HINT = "controlnet_cond_embedding"  # where the parameters of HintEmbedding stand among a ControlNet's
Residuals = tuple[jax.Array, ...]


class HintEmbedding(nn.Module):
    """E of equation 1: a picture `b H W c`, [0, 1] -> `b h w d`, with `config.factor` pixels to one and d of level 0.

    Its parameters are those under `HINT`.
    """

    config: ControlNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        config, widths = self.config, self.config.conditioning_embedding_out_channels
        x = picture[..., ::-1] if config.bgr else picture
        x = jax.nn.silu(Conv(widths[0], self.dtype, name="conv_in")(x))
        for i, (own, following) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            x = jax.nn.silu(Conv(own, self.dtype, name=f"blocks.{2 * i}")(x))
            x = jax.nn.silu(Conv(following, self.dtype, stride=2, name=f"blocks.{2 * i + 1}")(x))
        return Conv(config.unet.block_out_channels[0], self.dtype, name="conv_out")(x)


class ControlNet(nn.Module):
    """Equation 1: x `b h w c`, t `b`, conditions as the U-Net's, hint `b h w d` -> r_0 .. r_n, `b h' w' d'` each.

    x is the latents alone: what else stands beside them for an inpainting U-Net, in `conditions.channels`, is not
    read. `t` may also be what `controlnet_time_shifts` made from it. hint: what `HintEmbedding` gives.

    A Union (`config.num_control_type`) is handed m hints, `b m h w d`; modes, int32 `b m`, the number of each one's
    kind and -1 where there is no picture; and scales, float32 `b m`, by which each hint enters (None: 1).

    Residuals are in the order of the U-Net's skips, the finest first, the middle's last; unscaled; `b 1 1 d'` where
    `config.global_pool_conditions`. Raises ValueError where a condition is missing that it was trained with.
    """

    config: ControlNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: Time,
        conditions: Conditions,
        hint: jax.Array,
        modes: jax.Array | None = None,
        scales: jax.Array | None = None,
    ) -> Residuals:
        config = self.config
        signals = Signals(t if isinstance(t, Mapping) else self._embed_time(t, conditions, modes), conditions)
        x = Conv(config.unet.block_out_channels[0], self.dtype, name="conv_in")(x)
        x = x + (hint.astype(x.dtype) if config.num_control_type is None else self._fuse(hint, modes, scales))
        skips = [x]
        for i in range(config.unet.levels):
            x, outputs = DownBlock(config.unet, i, self.dtype, name=f"down_blocks.{i}")(x, signals)
            skips += outputs
        middle = MidBlock(config.unet, self.dtype, name="mid_block")(x, signals)
        names = [f"controlnet_down_blocks.{j}" for j in range(len(skips))]
        named = zip([*names, "controlnet_mid_block"], [*skips, middle], strict=True)
        return tuple(self._out(name, skip) for name, skip in named)

    def _out(self, name: str, skip: jax.Array) -> jax.Array:
        """Z of equation 1, and its average over the picture where the net was trained so."""
        out = Conv(skip.shape[-1], self.dtype, size=1, name=name)(skip)
        return jnp.mean(out, axis=(1, 2), keepdims=True) if self.config.global_pool_conditions else out

    def _embed_time(self, t: jax.Array, conditions: Conditions, modes: jax.Array | None) -> jax.Array:
        embed = ControlTime(self.config, self.dtype, name=None)
        nn.share_scope(self, embed)
        return embed(t, conditions, modes)

    def _fuse(self, hints: jax.Array, modes: jax.Array | None, scales: jax.Array | None) -> jax.Array:
        fusion = UnionFusion(self.config, self.dtype, name=None)
        nn.share_scope(self, fusion)
        return fusion(hints, _modes(modes), scales)


class ControlTime(nn.Module):
    """The embeddings that enter every resnet, as the U-Net's, and of a Union the kinds of its maps: t `b` -> `b d`.

    Its layers stand beside the net's blocks: hence the scope that `ControlNet` shares with it. Raises ValueError as
    the U-Net's does, and where a Union has no modes.
    """

    config: ControlNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, t: jax.Array, conditions: Conditions, modes: jax.Array | None = None) -> jax.Array:
        unet, types = self.config.unet, self.config.num_control_type
        embed = TimeEmbedding(unet, self.dtype, name=None)
        nn.share_scope(self, embed)
        time = embed(t, conditions)
        if types is None:
            return time
        wanted = (_modes(modes)[..., None] == jnp.arange(types)).any(1)
        flip, shift = unet.flip_sin_to_cos, unet.freq_shift
        features = unet.addition_time_embed_dim or 0
        flags = timestep_embedding(wanted.reshape(-1), features, flip_sin_to_cos=flip, freq_shift=shift)
        mlp = TimestepMlp(4 * unet.block_out_channels[0], self.dtype, name="control_add_embedding")
        return time + mlp(flags.reshape(wanted.shape[0], types * features))


def _modes(modes: jax.Array | None) -> jax.Array:
    if modes is None:
        raise ValueError("a Union must be told of every map what kind it is: give modes=")
    return modes


def controlnet_time_shifts(
    config: ControlNetConfig,
    dtype: DTypeLike,
    params: Mapping,
    t: jax.Array,
    conditions: Conditions,
    modes: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """What the time adds in every resnet, {its path: `b c`}, for timesteps `b`: all of it is known before a run.

    conditions: for as many pictures; those of `Conditions.beside_time` are read. modes: of a Union, int32 `b m`.
    Raises ValueError as `linear` does.
    """
    return shifts_of(params, ControlTime(config, dtype).apply({"params": params}, t, conditions, modes), dtype)


def init_from_unet(unet: Mapping[str, Any], config: ControlNetConfig, key: jax.Array) -> Params:
    """A ControlNet before its training: the U-Net's own way down, and all that leads in and out of it zero.

    unet: the parameters of the U-Net. A U-Net that sees more than latents (inpainting) gives the part for latents.
    key: of what is drawn, the picture's convolutions but the last. So it gives zeros, whatever it sees.

    Raises ValueError for a Union, which has layers that no U-Net has.
    """
    if config.num_control_type is not None:
        raise ValueError("a Union cannot be begun from a U-Net alone: its transformer over the maps is no part of one")
    copied = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "mid_block", "down_blocks.")
    made = {name: module for name, module in unet.items() if name.startswith(copied)}
    first = dict(made["conv_in"])
    made["conv_in"] = first | {"kernel": first["kernel"][:, :, : config.unet.in_channels]}
    side = config.factor
    picture = jnp.zeros((1, side, side, config.conditioning_channels))
    hint = dict(HintEmbedding(config).init(key, picture)["params"])
    hint["conv_out"] = jax.tree.map(jnp.zeros_like, hint["conv_out"])
    made[HINT] = hint
    return made | _zero_convolutions(config)


def _zero_convolutions(config: ControlNetConfig) -> Params:
    """Z of equation 1 as they are before training."""
    unet = config.unet
    widths = [unet.block_out_channels[0]]
    for level, (width, resnets) in enumerate(zip(unet.block_out_channels, unet.layers_per_block, strict=True)):
        widths += [width] * (resnets + (level < unet.levels - 1))
    zeros = [{"kernel": jnp.zeros((1, 1, width, width)), "bias": jnp.zeros(width)} for width in widths]
    made = {f"controlnet_down_blocks.{j}": zero for j, zero in enumerate(zeros)}
    return made | {"controlnet_mid_block": {**zeros[-1]}}
