"""What a family says of its models; Stable Diffusion 1 and 2 are the usual case, others overrule what differs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.typing import DTypeLike

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig


@dataclass(frozen=True)
class Family:
    """What differs between families.

    Attributes:
      name: of the family. guidance_scale: what diffusers' pipelines of it have where a checkpoint says nothing.
      layer: which of a text encoder's hidden states the U-Net attends to, counted from the end, 1 the last.
      final_norm: whether the encoder's final norm comes after it.
      steps_offset: what diffusers' pipelines overrule in a scheduler's config; None leaves it.
    """

    name: str
    guidance_scale: float = 7.5
    layer: int = 1
    final_norm: bool = True
    steps_offset: int | None = 1

    def has(self, unet: UNetConfig) -> bool:
        """Whether a U-Net of this config is one of the family's."""
        return True

    @property
    def plan_overrides(self) -> dict[str, Any]:
        """Keys of a scheduler's config that diffusers' pipelines overrule: latents are never clipped."""
        return {"clip_sample": False} | ({} if self.steps_offset is None else {"steps_offset": self.steps_offset})

    def schedule(self, preset: str | None, schedule: str | None) -> str | None:
        """The schedule that a program of this `preset` means by a name which it has for several families.

        ComfyUI's node is told which model's levels it is to take, and so are the callers of all presets but A1111's.
        """
        return schedule

    def time_ids(self, unet: UNetConfig, pooled: int) -> int:
        """How many numbers the U-Net takes beside a pooled text of width `pooled`."""
        return 0

    def skips_by_a1111(self, config: ClipTextConfig) -> bool:
        """Whether A1111's `clip skip` reaches this text encoder (modules/sd_hijack_clip.py)."""
        return config.hidden_act == "quick_gelu"

    def zeros_for_empty(self, style: str, negative: Mapping[str, str]) -> bool:
        """Whether a program of this prompt `style` takes an empty negative text for zeros."""
        return False

    def vae_dtype(self, vae: VaeConfig, dtype: DTypeLike) -> DTypeLike:
        """What the VAE computes in where the other networks compute in `dtype`."""
        return dtype
