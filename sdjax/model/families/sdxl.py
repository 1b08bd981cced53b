"""SDXL and its refiner (Podell et al. 2023, arXiv:2307.01952).

The U-Net attends to the last but one hidden states of every text encoder side by side, and also takes the last
encoder's pooled state and sizes (section 2.1 and 2.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.model.families.base import Family


@dataclass(frozen=True)
class _Sdxl(Family):
    def has(self, unet: UNetConfig) -> bool:
        return unet.addition_embed_type == "text_time"

    def schedule(self, preset: str | None, schedule: str | None) -> str | None:
        """A1111 has one name for Align Your Steps, and levels of its own for SDXL (get_align_your_steps_sigmas)."""
        return "ays_sdxl" if preset == "a1111" and schedule == "ays" else schedule

    def time_ids(self, unet: UNetConfig, pooled: int) -> int:
        """6 (the base) or 5 (the refiner): what of the embedding's width is not the pooled text's."""
        return ((unet.projection_class_embeddings_input_dim or pooled) - pooled) // (unet.addition_time_embed_dim or 1)

    def skips_by_a1111(self, config: ClipTextConfig) -> bool:
        return False

    def zeros_for_empty(self, style: str, negative: Mapping[str, str]) -> bool:
        return style == "a1111" and not any(negative.values())

    def vae_dtype(self, vae: VaeConfig, dtype: DTypeLike) -> DTypeLike:
        """float32 where the VAE's config says that its decoder overflows in float16."""
        return jnp.float32 if vae.force_upcast and dtype == jnp.float16 else dtype


SDXL = _Sdxl("sdxl", guidance_scale=5.0, layer=2, final_norm=False, steps_offset=None)
