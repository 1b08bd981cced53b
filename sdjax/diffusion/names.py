"""What samplers and schedules are called in other programs.

    here("DPM++ 2M Karras")  ->  {"sampler": "dpmpp_2m", "schedule": "karras"}

reads the names of A1111 and Forge, of ComfyUI, of k-diffusion's functions and of diffusers' classes, in whatever case
and with whatever signs between the words. A name of ours is what `samplers` and `plan` take; the others are hints.

A1111's names are from modules/sd_samplers_*.py and sd_schedulers.py of
https://github.com/AUTOMATIC1111/stable-diffusion-webui, and Forge's from modules_forge/alter_samplers.py.
"""

import re
from collections.abc import Iterable
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
# ComfyUI's second UniPC has diffusers' B(h); the paper's name is for what diffusers' multistep class does.
OTHERS = {"uni_pc_bh2": "unipc", "DPM-Solver++": "dpmpp_2m", "DPM-Solver++ 2M": "dpmpp_2m"}
# diffusers' classes, whose names began with Flax in its Flax edition. The multistep class is dpmpp_2m with its own
# defaults, and others of ours with its options.
DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDIMInverseScheduler": "ddim_inverse",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sa_solver",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}


def here(name: str, own: Iterable[str] = ()) -> dict[str, Any] | None:
    """The arguments of `generate` that a sampler's name in another program means; None where nobody has it.

    own: our names, which others may spell otherwise.
    """
    known = {_spelt(mine): mine for mine in (*SAMPLERS, *own)} | {_spelt(one): mine for mine, one in SAMPLERS.items()}
    known |= {_spelt(one): mine for one, mine in (DIFFUSERS | OTHERS).items()}
    spelt, endings = _spelt(name), {"": None, **_schedules()}
    for ending, schedule in endings.items():
        stem, also = spelt.removesuffix(ending), {} if schedule is None else {"schedule": schedule}
        if stem + ending == spelt and stem in known:
            return {"sampler": known[stem], **also}
        if stem + ending == spelt and stem == _spelt(SDE_HEUN):
            return {"sampler": "dpmpp_2m_sde", "sampler_options": {"solver_type": "heun"}, **also}
    return None


def schedule_here(name: str) -> str | None:
    """The schedule of ours that a name in another program means; None where nobody has it."""
    return _schedules().get(_spelt(name))


def _schedules() -> dict[str, str]:
    """Our schedules by all their names, `_spelt`."""
    theirs = {word: ours for ours, word in SCHEDULES.items()} | ALSO
    return {_spelt(word): ours for word, ours in {**theirs, **{ours: ours for ours in SCHEDULES}}.items()}


def _spelt(name: str) -> str:
    """In small letters without signs, `pp` for `++`; without `sample_` or `k_` of k-diffusion, `_gpu` and `Flax`."""
    word = re.sub(r"^(sample_|k_|flax)|_gpu$", "", name.lower().replace("++", "pp"))
    return re.sub(r"[^a-z0-9]+", "", word)
