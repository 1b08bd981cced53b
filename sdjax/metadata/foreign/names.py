"""ComfyUI's and InvokeAI's names of samplers and schedules, with the options that make them the same here.

`diffusion.names` has A1111's and diffusers'. Only what is the same sampler here is in the tables.

Sources: ComfyUI comfy/samplers.py and comfy/extra_samplers/uni_pc.py, InvokeAI
backend/stable_diffusion/schedulers/schedulers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdjax.diffusion import names
from sdjax.diffusion.samplers import SAMPLERS


@dataclass(frozen=True)
class Choice:
    """Arguments of `generate`: a sampler, the schedule where the name says one, and the sampler's options."""

    sampler: str
    schedule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """As `generate` takes them, without what the name does not say."""
        made: dict[str, Any] = {"sampler": self.sampler}
        if self.schedule is not None:
            made["schedule"] = self.schedule
        if self.options:
            made["sampler_options"] = dict(self.options)
        return made


HEUN = {"solver_type": "heun"}

# ComfyUI's word, SwarmUI's and Fooocus's: ours. One that ends in _gpu is the same with noise drawn there.
COMFY_SAMPLERS = {
    **{name: name for name in ("euler", "euler_ancestral", "heun", "lms", "dpm_fast", "dpm_adaptive", "ddpm", "lcm")},
    **{name: name for name in ("dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddim")},
    **{name: name for name in ("ipndm", "deis", "res_multistep", "er_sde", "gradient_estimation")},
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_ancestral",
}
# Those that are options of one of ours: UniPC of the third order, with either B(h).
COMFY_OPTIONS = {
    "dpmpp_2m_sde_heun": Choice("dpmpp_2m_sde", None, HEUN),
    "uni_pc": Choice("unipc", None, {"solver_order": 3, "solver_type": "bh1"}),
    "uni_pc_bh2": Choice("unipc", None, {"solver_order": 3}),
}
COMFY_SCHEDULES = {
    **{name: name for name in ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform")},
    **{name: name for name in ("beta", "kl_optimal", "linear_quadratic")},
}
# InvokeAI's word for one of diffusers' classes: ours. A name that ends in _k has Karras' levels.
INVOKE = {
    **{
        name: name for name in ("ddim", "ddpm", "deis", "lms", "pndm", "heun", "euler", "dpmpp_2s", "dpmpp_2m", "unipc")
    },
    **{name: name for name in ("dpmpp_2m_sde", "dpmpp_3m", "dpmpp_sde", "lcm", "tcd")},
    **{"euler_a": "euler_ancestral", "kdpm_2": "dpm2", "kdpm_2_a": "dpm2_ancestral"},
}


def other(name: str) -> Choice | None:
    """A name of A1111's, Forge's or diffusers', maybe with its schedule; ours too, however it is written."""
    found = names.here(name, SAMPLERS)
    return None if found is None else Choice(found["sampler"], found.get("schedule"), found.get("sampler_options", {}))


def comfy(name: str, schedule: str | None = None) -> Choice | None:
    """ComfyUI's name of a sampler, and of a schedule by its own."""
    if schedule is not None and schedule not in COMFY_SCHEDULES:
        return None
    plain = name.removesuffix("_gpu")
    ours = None if schedule is None else COMFY_SCHEDULES[schedule]
    if plain in COMFY_OPTIONS:
        return replace(COMFY_OPTIONS[plain], schedule=ours)
    return Choice(COMFY_SAMPLERS[plain], ours) if plain in COMFY_SAMPLERS else None


def invoke(name: str) -> Choice | None:
    """InvokeAI's name of a scheduler."""
    plain = name.removesuffix("_k")
    return Choice(INVOKE[plain], "karras" if plain != name else None) if plain in INVOKE else None
