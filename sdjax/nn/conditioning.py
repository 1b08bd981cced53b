"""All that a U-Net is told beside x and t."""

from dataclasses import dataclass
from typing import NamedTuple

import jax

from sdjax.core import short
from sdjax.nn.attention import Context
from sdjax.nn.layers import timestep_embedding


class Added(NamedTuple):
    """SDXL's second text input (`addition_embed_type: text_time`)."""

    pooled: jax.Array  # `b d`, the pooled and projected text
    time_ids: jax.Array  # `b i`: original size, crop, target size (base) or aesthetic score (refiner)

    def __repr__(self) -> str:
        return short.fields(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """All that a U-Net is told beside x and t, for b pictures: every leaf `b ...`."""

    context: Context
    added: Added | None = None
    guidance: jax.Array | None = None  # `b d`, see `guidance_embedding`
    channels: jax.Array | None = None  # `b h w c`, beside x: mask and masked picture, depth, picture to be edited ..
    class_labels: jax.Array | None = None  # int32 `b`: the upscaler's noise level

    __repr__ = short.fields


def guidance_embedding(scale: jax.Array, features: int) -> jax.Array:
    """Guidance scales `b` as sinusoids `b d`, for U-Nets distilled to know the scale (Meng et al., arXiv:2210.03142).

    As latent consistency models have it (Luo et al. 2023, arXiv:2310.04378): of 1000 (scale - 1), sines first.
    """
    return timestep_embedding(1000.0 * (scale - 1.0), features, flip_sin_to_cos=False, freq_shift=1.0)
