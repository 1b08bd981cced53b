"""ModelSpec: what a checkpoint is, without a single array.

Its name, its networks' configs, its tokenizers and its scheduler's config say all that a request needs to be checked
against: which sizes and texts it takes, which layers of which encoder, which noise levels. Arrays and devices come
with `networks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sdjax.config import Config, UNetConfig, VaeConfig
from sdjax.diffusion.noise import NoiseSchedule, Settings, noise_schedule
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan import plan as make_plan
from sdjax.model.families import Family, family_of
from sdjax.model.image_towers import DepthEstimator, ImageEncoder
from sdjax.model.tasks import Task, task_of
from sdjax.model.text_encoder import TextEncoder
from sdjax.nn import shapes

# Keys of a scheduler config that say which noise a model was trained with.
BETAS = frozenset(
    ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
)


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """What a checkpoint is.

    Attributes:
      name: where it came from, as the pictures' metadata names it.
      encoders: the text encoders' configs with their tokenizers, by component. SDXL has two, its refiner the second.
      unet, vae: the networks' configs. scheduler: scheduler_config.json as a dict.
      guidance_scale: the checkpoint's default.
      zeros_for_empty_negative: whether a negative prompt of None is all zeros (SDXL base) rather than the empty text.
      depth_estimator, image_encoder: of models that are shown a depth map, or a picture in place of a text.
      low_res_scheduler: of an upscaler, scheduler_config.json of the noise on its small picture. most_noise: the
        highest level of that noise that it was trained with.
    """

    name: str
    encoders: Mapping[str, TextEncoder]
    unet: UNetConfig
    vae: VaeConfig
    scheduler: Mapping[str, Any]
    guidance_scale: float = 7.5
    zeros_for_empty_negative: bool = False
    depth_estimator: DepthEstimator | None = None
    image_encoder: ImageEncoder | None = None
    low_res_scheduler: Mapping[str, Any] | None = None
    most_noise: int = 350

    @property
    def family(self) -> Family:
        """What differs between Stable Diffusion 1 and 2, SDXL, and others."""
        return family_of(self.unet)

    @property
    def time_ids(self) -> int:
        """How many numbers the U-Net takes: 6 for SDXL, 5 for its refiner, else 0."""
        last = next(reversed([*self.encoders.values()]), None)
        return self.family.time_ids(self.unet, 0 if last is None else last.config.projection_dim or 0)

    @cached_property
    def task(self) -> Task:
        """What it is for. Raises ValueError for channels that no model has."""
        varies = self.image_encoder is not None and not self.encoders
        return task_of(self.name, self.unet.in_channels, self.vae.latent_channels, varies)

    @property
    def side(self) -> int:
        """Height and width of the pictures that the model was trained on, in pixels."""
        return self.unet.sample_size * self.vae.factor

    @property
    def configs(self) -> dict[str, Config]:
        """Every network's config by component."""
        towers = {"image_encoder": self.image_encoder, "depth_estimator": self.depth_estimator}
        parts: dict[str, Any] = {**self.encoders, **{name: one for name, one in towers.items() if one is not None}}
        return {name: part.config for name, part in parts.items()} | {"unet": self.unet, "vae": self.vae}

    @cached_property
    def expected_params(self) -> dict[str, Any]:
        """The shapes of every parameter by component; see `nn.shapes`."""
        return shapes.expected_params(self.configs)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, c) of the latents of a picture of so many pixels."""
        return height // self.vae.factor, width // self.vae.factor, self.vae.latent_channels

    def plan(self, sampler: Any, steps: int | None, schedule: str | None = None, **options: Any) -> Plan:
        """See `StableDiffusion.plan`."""
        schedule = self.family.schedule(options.get("preset"), schedule)
        return make_plan(sampler, steps, {**self.scheduler, **self.family.plan_overrides}, schedule, **options)

    @cached_property
    def low_res_noise(self) -> NoiseSchedule:
        """The noise that an upscaler's small picture gets. Raises ValueError where the checkpoint does not say."""
        config = self.low_res_scheduler
        if config is None:
            raise ValueError(f"{self.name} has no low_res_scheduler, which says how an upscaler's picture is noised")
        return noise_schedule(Settings.read(config, frozenset(config), {}))

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_t^2 of the training levels, float64 [T]; see `StableDiffusion.alphas_cumprod`."""
        return noise_schedule(Settings.read(self.scheduler, BETAS, {})).alphas_cumprod
