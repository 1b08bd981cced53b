"""How a ControlNet-Union looks at several maps at once (xinsir's ControlNetPlus; diffusers' ControlNetUnionModel).

Of each map E_n `h w d` (see `controlnet`), whose kind has the embedding e_n, one token z_n, and the sum of all of them:

    y = s_n (mean(E_n) + e_n),    y' = y + W_o W_v norm(y),    z_n = y' + mlp(norm(y'))                     (1)
    sum over n of  s_n (E_n + P z_n)                                                                        (2)

with the mean over all pixels. The second term of y' is what a self-attention is that looks at its own token alone.
That is what a Union does to one picture: xinsir's code and diffusers' hand torch's attention, which expects the
sequence first, the batch first. So a token never sees the other maps of its picture, nor the latents' token that both
append, but the same map's token of all pictures of the batch, which in a picture's two guided halves is the same. Of
different pictures in one batch they make a mixture; here a picture is the same in every batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config.controlnet import ControlNetConfig
from sdjax.nn.layers import Dense, LayerNorm, quick_gelu
from sdjax.nn.parameter import parameter

# What a Union's control types are, by their numbers; the last two are ProMax's alone. After a colon: other maps that
# it was trained with under the same number.
MODES: tuple[tuple[str, ...], ...] = (
    ("openpose", "pose", "dwpose"),
    ("depth",),
    ("scribble", "hed", "softedge", "pidi", "ted"),
    ("canny", "lineart", "anime_lineart", "mlsd"),
    ("normal", "normalbae"),
    ("segment", "segmentation", "seg"),
    ("tile", "blur"),
    ("repaint", "inpaint"),
)


class UnionFusion(nn.Module):
    """The sum of equation 2: hints `b m h w d`, modes int32 `b m`, scales `b m` -> `b h w d`.

    modes: -1 where there is no map. scales: s of both equations; None: 1.
    """

    config: ControlNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, hints: jax.Array, modes: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        config, width = self.config, hints.shape[-1]
        table_shape = (config.num_control_type or 0, width)
        table = parameter(self, "task_embedding", nn.initializers.normal(width**0.5), table_shape)
        kinds = jnp.take(table.astype(self.dtype), jnp.maximum(modes, 0), axis=0)
        scale = (modes >= 0).astype(self.dtype) * (1.0 if scales is None else scales.astype(self.dtype))
        hints = hints.astype(self.dtype)
        tokens = scale[..., None] * (hints.mean((2, 3)) + kinds)
        for i in range(config.layers):
            tokens = TokenBlock(self.dtype, name=f"transformer_layes.{i}")(tokens)
        shift = Dense(width, self.dtype, name="spatial_ch_projs")(tokens)
        return jnp.einsum("bm,bmhwd->bhwd", scale, hints + shift[:, :, None, None])


class TokenBlock(nn.Module):
    """Equation 1: y -> z, `.. d`."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        width = y.shape[-1]
        value = Dense(width, self.dtype, name="attn.v_proj")(LayerNorm(1e-5, self.dtype, name="ln_1")(y))
        y = y + Dense(width, self.dtype, name="attn.out_proj")(value)
        h = Dense(4 * width, self.dtype, name="mlp.c_fc")(LayerNorm(1e-5, self.dtype, name="ln_2")(y))
        return y + Dense(width, self.dtype, name="mlp.c_proj")(quick_gelu(h))
