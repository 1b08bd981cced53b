"""Samplers and schedules by the names that other programs give them.

    translated("DPM++ 2M Karras")               Choice("dpmpp_2m", "karras")      AUTOMATIC1111's web UI, Forge
    translated("dpmpp_2m_sde_gpu")              Choice("dpmpp_2m_sde")            ComfyUI
    translated("DPMSolverMultistepScheduler")   Choice("dpmpp_2m")                diffusers

Only what is the same sampler here is in the tables. Some of their names are ours as well, "heun" for one: so ask for a
translation of what is no name of ours.

Sources: A1111 modules/sd_samplers_*.py and sd_schedulers.py, Forge modules_forge/alter_samplers.py, ComfyUI
comfy/samplers.py, InvokeAI backend/stable_diffusion/schedulers/schedulers.py, diffusers' classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


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

    def __str__(self) -> str:
        """As it is written in a call: sampler='dpmpp_2m', schedule='karras'."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


# Our word: A1111's. DDPM, IPNDM and DEIS are Forge's.
A1111_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "ipndm": "IPNDM",
    "restart": "Restart",
    "lcm": "LCM",
}
A1111_SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "ays": "Align Your Steps",
    "simple": "Simple",
    "normal": "Normal",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
}
# Second names: with their defaults Uniform is what Normal is; Turbo is Forge's word for trailing timesteps.
ALSO = {"Uniform": "normal", "Turbo": "trailing"}
# A sampler of theirs that is an option of one of ours.
SDE_HEUN = "DPM++ 2M SDE Heun"
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
# diffusers' classes, with their own defaults.
DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDIMInverseScheduler": "ddim_inverse",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "IPNDMScheduler": "ipndm",
    "SASolverScheduler": "sa_solver",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
# InvokeAI's word for one of diffusers' classes: ours. A name that ends in _k has Karras' levels.
INVOKE = {
    **{
        name: name for name in ("ddim", "ddpm", "deis", "lms", "pndm", "heun", "euler", "dpmpp_2s", "dpmpp_2m", "unipc")
    },
    **{name: name for name in ("dpmpp_2m_sde", "dpmpp_3m", "dpmpp_sde", "lcm", "tcd")},
    **{"euler_a": "euler_ancestral", "kdpm_2": "dpm2", "kdpm_2_a": "dpm2_ancestral"},
}


def translated(name: str) -> Choice | None:
    """What another program's name for a sampler, maybe with its schedule, is here; None where nothing is known."""
    return a1111(name) or comfy(name) or diffusers(name) or invoke(name)


def a1111(name: str) -> Choice | None:
    """AUTOMATIC1111's name; before its version 1.9 a schedule was part of it: "DPM++ 2M Karras"."""
    words = " ".join(name.split()).casefold()
    if words in _A1111:
        return _A1111[words]
    for ours, theirs in A1111_SCHEDULES.items():
        rest = words.removesuffix(f" {theirs.casefold()}")
        if rest != words and rest in _A1111:
            return Choice(_A1111[rest].sampler, ours, _A1111[rest].options)
    return None


def a1111_schedule(name: str) -> str | None:
    """AUTOMATIC1111's or Forge's name of a schedule as ours."""
    return _A1111_SCHEDULES.get(" ".join(name.split()).casefold())


def comfy(name: str, schedule: str | None = None) -> Choice | None:
    """ComfyUI's name of a sampler, and of a schedule by its own."""
    if schedule is not None and schedule not in COMFY_SCHEDULES:
        return None
    plain = name.removesuffix("_gpu")
    ours = None if schedule is None else COMFY_SCHEDULES[schedule]
    if plain in COMFY_OPTIONS:
        return replace(COMFY_OPTIONS[plain], schedule=ours)
    return Choice(COMFY_SAMPLERS[plain], ours) if plain in COMFY_SAMPLERS else None


def diffusers(name: str) -> Choice | None:
    """The class of a scheduler of diffusers, with or without its last word."""
    sampler = DIFFUSERS.get(name) or DIFFUSERS.get(f"{name}Scheduler")
    return Choice(sampler) if sampler else None


def invoke(name: str) -> Choice | None:
    """InvokeAI's name of a scheduler."""
    plain = name.removesuffix("_k")
    return Choice(INVOKE[plain], "karras" if plain != name else None) if plain in INVOKE else None


_A1111 = {theirs.casefold(): Choice(ours) for ours, theirs in A1111_SAMPLERS.items()}
_A1111[SDE_HEUN.casefold()] = Choice("dpmpp_2m_sde", None, HEUN)
_A1111_SCHEDULES = {theirs.casefold(): ours for ours, theirs in A1111_SCHEDULES.items()}
_A1111_SCHEDULES |= {theirs.casefold(): ours for theirs, ours in ALSO.items()}
