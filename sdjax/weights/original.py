"""The original layout: one file for a whole checkpoint, its networks told apart by their names' beginnings.

    model.diffusion_model.*            the U-Net
    first_stage_model.*                the autoencoder
    cond_stage_model.*                 the text encoder of Stable Diffusion 1.x and 2.x
    conditioner.embedders.0.*  .1.*    the text encoders of SDXL; the refiner has its one as number 0

Tools write other prefixes and other words, so a network is known by the names inside it, and a text encoder by its
width as well. Whatever the file calls them, its tensors get the names above (`spelling`, `ldm`, `openclip`), by which
they are then read strictly: each has its place in a network, and each place its tensor.

Beside the networks lie things that no picture needs. They are left aside and named.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.config import UNetConfig, VaeConfig
from sdjax.config.components import TOKENIZERS
from sdjax.core import errors
from sdjax.weights import ldm, names, openclip
from sdjax.weights.files import Entry, Header
from sdjax.weights.ldm import UNET_PREFIX, VAE_PREFIX
from sdjax.weights.prediction import V_PRED, ZTSNR
from sdjax.weights.spelling import collect, is_averaged

Json = Mapping[str, Any]
TWICE = "tensors that are there once more"

_LEFTOVERS = (
    ("the training noise schedule", r"(betas|logvar|lvlb_weights|scale_factor|denoiser\..*|posterior_.*"
     r"|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_|sqrt_one_minus_|log_one_minus_)?(one_minus_)?alphas_cumprod(_prev)?)"),
    ("constants of the text encoders", r"(.*\.)?(position_ids|attn_mask|logit_scale|logit_bias)"),
    ("the half of CLIP that sees pictures", r"(?!safety_checker\.)(.*\.)?(vision_model|visual|visual_projection)\..*"),
    ("the VAE's training loss", r"(first_stage_model\.)?(loss|discriminator)\..*|first_stage_model\.logvar"),
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
        if component not in TOKENIZERS:
            return {"unet": UNET_PREFIX, "vae": VAE_PREFIX}[component]
        if self.configs["unet"].get("addition_embed_type") != "text_time":
            return "cond_stage_model."
        number = [name for name in TOKENIZERS if name in self.configs].index(component)
        return f"conditioner.embedders.{number}."

    def places(self, component: str) -> names.Places:
        """Where each parameter of a component may lie, the usual place first."""
        config, prefix = self.configs[component], self.prefix(component)
        if component in TOKENIZERS:
            act = config.get("hidden_act", "quick_gelu")
            return lambda path, shape: openclip.places(path, shape, prefix, act)
        unet = component == "unet"
        modules = (
            ldm.unet_modules(UNetConfig.from_dict(config)) if unet else ldm.vae_modules(VaeConfig.from_dict(config))
        )
        return lambda path, shape: [ldm.place(path, shape, modules, prefix)]

    def sort(self, header: Header) -> "Sorted":
        """Which tensor belongs to which component, under its authors' name, and which are left over.

        Raises CheckpointError where one comes twice and differs.
        """
        leftovers = {name: what for name in header.tensors if (what := _leftover(name))}
        rest = {name: entry for name, entry in header.tensors.items() if name not in leftovers}
        owners = self._owners(rest)
        tensors, twice = collect(header, {name: new for name, (_, new) in owners.items()})
        components: dict[str, dict[str, Entry]] = {component: {} for component in self.configs}
        for component, new in owners.values():
            components[component][new] = tensors[new]
        leftovers |= dict.fromkeys(twice, TWICE)
        for component in TOKENIZERS:
            for name in self._unused(component, components.get(component, {})):
                leftovers[components[component].pop(name).name] = "text encoder tensors that it does not use"
        strangers = [name for name in rest if name not in owners and openclip.spelled(name)]
        aside = [name for name in rest if name not in owners and name not in strangers]
        return Sorted(components, leftovers | {name: _group(name) for name in aside}, strangers)

    def _owners(self, tensors: Mapping[str, Entry]) -> dict[str, tuple[str, str]]:
        """(component, the authors' name) of every tensor that belongs to one, by its name in the file."""
        words = ldm.vae_words(VaeConfig.from_dict(self.configs["vae"]))
        found: dict[str, tuple[str, str]] = {}
        encoders: dict[tuple[str, bool], dict[str, str]] = {}  # SDXL's two may share a prefix, but no dialect
        for name in tensors:
            if name.startswith(UNET_PREFIX):
                found[name] = "unet", name
            elif new := ldm.vae_name(name, words):
                found[name] = "vae", new
            elif spelled := openclip.spelled(name):
                encoders.setdefault((spelled[0], openclip.is_open(spelled[1])), {})[name] = spelled[1]
        for (above, _), own in encoders.items():
            if component := self._encoder(above, [tensors[name] for name in own]):
                found |= {name: (component, self.prefix(component) + new) for name, new in own.items()}
        prefixes = {self.prefix(component): component for component in self.configs}
        for name in tensors:  # what is in a network by its prefix alone is for reading to refuse
            owner = next((component for prefix, component in prefixes.items() if name.startswith(prefix)), None)
            if owner is not None and not openclip.spelled(name):
                found.setdefault(name, (owner, name))
        return found

    def _encoder(self, above: str, entries: list[Entry]) -> str | None:
        """Which text encoder these tensors, of one prefix, belong to: the one as wide, else the one so called."""
        widths = Counter(entry.shape[-1] for entry in entries if entry.shape)
        width = widths.most_common(1)[0][0] if widths else None
        own = [component for component in TOKENIZERS if component in self.configs]
        wide = [component for component in own if self.configs[component]["hidden_size"] == width]
        return next(iter([*wide, *(component for component in own if self.prefix(component) == above)]), None)

    def _unused(self, component: str, tensors: Iterable[str]) -> list[str]:
        if component not in self.configs:
            return []
        config = self.configs[component]
        projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        act = config.get("hidden_act", "quick_gelu")
        return openclip.unused(tensors, self.prefix(component), config["num_hidden_layers"], projects, act)


@dataclass(frozen=True)
class Sorted:
    """A file's tensors.

    Attributes:
      components: by component and the authors' name.
      leftovers: what it is, by name. strangers: text encoders' tensors that are none of this family's.
    """

    components: Mapping[str, Mapping[str, Entry]]
    leftovers: Mapping[str, str]
    strangers: list[str]


def _leftover(name: str) -> str | None:
    """What a tensor is that is known to be of no use, or None."""
    if is_averaged(name):
        return "averaged weights (model_ema.*; the plain ones are read)"
    return next((what for what, pattern in _LEFTOVERS if re.fullmatch(pattern, name)), None)


def _group(name: str) -> str:
    """The group that a tensor of unknown use is named by."""
    head, dot, _ = name.partition(".")
    return errors.shown(f"{head}.*" if dot else name, 60)
