"""The original layout: one file for a whole checkpoint, its networks told apart by their names' beginnings.

    model.diffusion_model.*            the U-Net
    first_stage_model.*                the autoencoder
    cond_stage_model.*                 the text encoder of Stable Diffusion 1.x and 2.x
    conditioner.embedders.0.*  .1.*    the text encoders of SDXL; the refiner has its one as number 0

Beside them lie things that no picture needs; they are known by name and left alone, anything else is an error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.config import UNetConfig, VaeConfig
from sdjax.weights import ldm, names, openclip
from sdjax.weights.ldm import UNET_PREFIX, VAE_PREFIX
from sdjax.weights.prediction import V_PRED, ZTSNR

Json = Mapping[str, Any]
TEXT = ("text_encoder", "text_encoder_2")

_LEFTOVERS = (
    ("averaged weights (model_ema.*; the plain ones are read)", r"(first_stage_model\.)?model_ema\..*"),
    ("the training noise schedule", r"(betas|logvar|lvlb_weights|scale_factor|denoiser\.(log_)?sigmas|posterior_.*"
     r"|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_|sqrt_one_minus_|log_one_minus_)?(one_minus_)?alphas_cumprod(_prev)?)"),
    ("constants of the text encoders", r".*\.(position_ids|attn_mask|logit_scale)|logit_scale"),
    ("the VAE's training loss", r"first_stage_model\.(loss\..*|logvar)"),
    ("the safety checker", r"safety_checker\..*"),
    ("the depth estimator", r"depth_model\..*"),
    ("the upscaler's noise schedule", r"low_scale_model\..*"),
    ("marks", rf"{V_PRED}|{ZTSNR}|edm_vpred\.sigma_min"),
)  # fmt: skip


@dataclass(frozen=True)
class Original:
    """The original layout of a checkpoint with these configs (config.json by component)."""

    configs: Mapping[str, Json]

    def prefix(self, component: str) -> str:
        """With what the names of a component's tensors begin."""
        if component not in TEXT:
            return {"unet": UNET_PREFIX, "vae": VAE_PREFIX}[component]
        if self.configs["unet"].get("addition_embed_type") != "text_time":
            return "cond_stage_model."
        number = [name for name in TEXT if name in self.configs].index(component)
        return f"conditioner.embedders.{number}."

    def places(self, component: str) -> names.Places:
        """Where each parameter of a component may lie, the usual place first."""
        config, prefix = self.configs[component], self.prefix(component)
        if component in TEXT:
            act = config.get("hidden_act", "quick_gelu")
            return lambda path, shape: openclip.places(path, shape, prefix, act)
        unet = component == "unet"
        modules = (
            ldm.unet_modules(UNetConfig.from_dict(config)) if unet else ldm.vae_modules(VaeConfig.from_dict(config))
        )
        return lambda path, shape: [ldm.place(path, shape, modules, prefix)]

    def sort(self, tensors: Iterable[str]) -> "Sorted":
        """Which tensor belongs to which component, which are left over, and which are not known."""
        tensors = list(tensors)
        leftovers = {name: what for name in tensors if (what := _leftover(name))}
        for component in TEXT:
            if component in self.configs:
                leftovers |= dict.fromkeys(
                    self._unused(component, tensors), "text encoder tensors that it does not use"
                )
        components: dict[str, list[str]] = {component: [] for component in self.configs}
        unknown: list[str] = []
        prefixes = {self.prefix(component): component for component in components}
        for name in tensors:
            if name in leftovers:
                continue
            owner = next((component for prefix, component in prefixes.items() if name.startswith(prefix)), None)
            (unknown if owner is None else components[owner]).append(name)
        return Sorted(components, leftovers, unknown)

    def _unused(self, component: str, tensors: list[str]) -> list[str]:
        config = self.configs[component]
        projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        return openclip.unused(tensors, self.prefix(component), config["num_hidden_layers"], projects)


@dataclass(frozen=True)
class Sorted:
    """A file's tensors: by component, left over (what it is, by name), unknown."""

    components: Mapping[str, list[str]]
    leftovers: Mapping[str, str]
    unknown: list[str]


def _leftover(name: str) -> str | None:
    return next((what for what, pattern in _LEFTOVERS if re.fullmatch(pattern, name)), None)
