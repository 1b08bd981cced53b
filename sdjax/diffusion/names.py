"""What samplers and schedules are called in other programs.

A1111's names are from modules/sd_samplers_*.py and sd_schedulers.py of
https://github.com/AUTOMATIC1111/stable-diffusion-webui, and Forge's from modules_forge/alter_samplers.py.
"""

from collections.abc import Mapping
from typing import Any

# Our word: theirs. DDPM, IPNDM and DEIS are Forge's.
SAMPLERS = {
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
SCHEDULES = {
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


def a1111_sampler(text: str) -> dict[str, Any]:
    """A1111's name of a sampler as arguments of `generate`; one that it does not have stays as it is.

    Before its version 1.9 the schedule was part of the name: "DPM++ 2M Karras".
    """
    for mine, theirs in SCHEDULES.items():
        rest = text.removesuffix(f" {theirs}")
        if rest != text and rest in (*SAMPLERS.values(), SDE_HEUN):
            return {**a1111_sampler(rest), "schedule": mine}
    if text == SDE_HEUN:
        return {"sampler": "dpmpp_2m_sde", "sampler_options": {"solver_type": "heun"}}
    return {"sampler": ours(SAMPLERS, text)}


def ours(words: Mapping[str, str], theirs: str) -> str:
    """The word of ours for one of theirs, which stays as it is where there is none."""
    return next((mine for mine, other in words.items() if other == theirs), theirs)
