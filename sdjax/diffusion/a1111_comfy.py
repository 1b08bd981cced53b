"""What A1111 and ComfyUI make of a schedule's name, where they differ from diffusers.

Both walk k-diffusion's sigmas over all training levels, take nothing of the spacing from a checkpoint's scheduler
config, and end clean. For `dpm2` and its like they take one step more and leave out the smallest noise above 0.

                    A1111                                     ComfyUI
  timesteps         fractional, linear in log ve              the nearest whole one
  x_T               times the first sigma                     times sqrt(1 + sigma^2) at the noisiest level
  beta              even in noise                             even in timesteps, equal ones left out
  kl_optimal        N steps, ending at the smallest level     N levels, then clean
  laplace           -                                         N levels, N - 1 steps, ending at the smallest
  ays               N levels of 11, to three decimals         N of N + 1 levels, to full precision
  zero terminal SNR alpha_bar 4.9e-8 at the end, both
  schedule=None     "Automatic", by sampler                   "normal", of its first workflow
  image-to-image    all but N - 1 - int(N s) of N steps,      N of int(N / s) steps; its nodes: round(N s) of N
                    s up to 0.999

Sources: A1111 modules/sd_schedulers.py, sd_samplers_kdiffusion.py, sd_models.py, with the default options;
k_diffusion/external.py; ComfyUI comfy/samplers.py, model_sampling.py, comfy_extras/nodes_custom_sampler.py,
nodes_align_your_steps.py, nodes_model_advanced.py; image-to-image: A1111 modules/sd_samplers_common.py
(setup_img2img_steps) and sample_img2img, ComfyUI KSampler.set_steps, BasicScheduler and SplitSigmasDenoise. A1111's
DDIM, PLMS, UniPC and LCM have timesteps of their own (sd_samplers_timesteps.py, sd_samplers_lcm.py), which are not
here.
"""

import numpy as np

from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.diffusion import sigmas
from sdjax.diffusion.noise import NoiseSchedule, Settings, noise_schedule
from sdjax.diffusion.schedule import Schedule, chain, check_decreasing, last_level, levels_of

PRESETS = ("diffusers", "a1111", "comfy")
MOST_LEVELS = 20_000  # of a schedule of which image-to-image runs the end
TERMINAL_ALPHA_BAR = 4.8973451890853435e-08
# What a peer's own names mean here; KSampler's names of ComfyUI first, then those of its nodes.
COMFY_NODES = {"polyexponential": "polyexponential", "laplace": "laplace", "ays": "ays", "ays_sdxl": "ays_sdxl"}
COMFY_KSAMPLER = {
    **{name: name for name in ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "normal")},
    **{name: name for name in ("linear_quadratic", "kl_optimal", "beta_timesteps")},
    "beta": "beta_timesteps",
}
A1111 = {
    **{name: name for name in ("normal", "karras", "exponential", "polyexponential", "sgm_uniform", "kl_optimal")},
    **{name: name for name in ("ays", "ays_sdxl", "simple", "ddim_uniform", "beta")},
}
NAMES = {"a1111": A1111, "comfy": {**COMFY_KSAMPLER, **COMFY_NODES}}
# A1111's "Automatic", where it is not "Uniform", which is `normal`.
AUTOMATIC = {
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_ancestral", "dpm2", "dpm2_ancestral", "restart"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"), "exponential"),
}
DISCARDS = {"a1111": ("dpm2", "dpm2_ancestral", "dpmpp_3m_sde"), "comfy": ("dpm2", "dpm2_ancestral", "unipc")}
OWN_TIMESTEPS = ("ddim", "ddim_inverse", "ddpm", "pndm", "pndm_prk", "unipc", "lcm", "tcd")
A1111_AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def check_preset(preset: str) -> str:
    """Return `preset` if it is one of `PRESETS`; otherwise raise ValueError with the nearest."""
    if preset in PRESETS:
        return preset
    raise ValueError(unknown(f"preset {short(preset)} is unknown", preset, PRESETS))


def peer_name(preset: str, sampler: str, schedule: str | None) -> str:
    """The schedule that `schedule` is under that preset; None is the peer's own choice.

    Raises:
      ValueError: the peer has no such schedule, or does not walk this sampler on sigmas.
    """
    if preset == "a1111" and sampler in OWN_TIMESTEPS:
        raise ValueError(
            f"A1111 has no {sampler} on sigmas (its own walks fixed timesteps, or there is none); "
            "take preset='diffusers' or preset='comfy'"
        )
    if schedule is None:
        return AUTOMATIC.get(sampler, "normal") if preset == "a1111" else "normal"
    known = NAMES[preset]
    if schedule not in known:
        said, told = f"preset {preset!r} has no schedule {schedule!r}", f"it has {', '.join(known)}"
        raise ValueError(unknown(said, schedule, known, told))
    return known[schedule]


def discards(preset: str, sampler: str, schedule: str) -> bool:
    """Whether that peer leaves out the smallest noise above 0. ComfyUI's scheduler nodes never do."""
    return sampler in DISCARDS.get(preset, ()) and not (preset == "comfy" and schedule in COMFY_NODES)


def begun(settings: Settings, steps: int, strength: float) -> tuple[int, int]:
    """Image-to-image of that preset: (steps of the schedule, how many of its last are run).

    settings: of A1111 or ComfyUI. strength: 0 to 1.

    Raises:
      ValueError: ComfyUI would make a schedule of more than `MOST_LEVELS` steps.
    """
    if settings.preset == "a1111":  # counts from the first level, and ddim_uniform may have more of them than asked for
        made = len(_levels(settings, peer_noise(settings), steps)) - 1
        return steps, made - (steps - 1 - int(min(strength, 0.999) * steps))
    if settings.schedule is None or settings.schedule in COMFY_NODES:  # levels of the caller's own are no KSampler's
        return steps, round(steps * strength)
    if strength > 0.9999 or strength == 0:
        return steps, steps if strength else 0
    if steps / strength > MOST_LEVELS:
        raise ValueError(
            f"strength {strength:g} is too small for {steps} steps: ComfyUI would run the last of "
            f"{steps / strength:.3g}, and the most is {MOST_LEVELS:,}; take a strength from {steps / MOST_LEVELS:.2g}"
        )
    return int(steps / strength), steps


def peer_schedule(settings: Settings, steps: int) -> Schedule:
    """The levels of `settings.schedule`, or of the caller's sigmas or timesteps, as that preset's peer has them."""
    noise, comfy = peer_noise(settings), settings.preset == "comfy"
    ve = _levels(settings, noise, steps)
    if settings.final_sigmas_type == "sigma_min" and ve[-1] == 0:  # a sampler that cannot end clean
        ve[-1] = ve[-2]
    told = noise.nearest if comfy else noise.timestep
    levels = levels_of(check_decreasing(ve[:-1], settings.schedule or "custom"), told(ve[:-1]))
    noisiest = ve[0] > noise.ve[-1] * (1 - 1e-5)
    end = last_level(float(ve[-1]), told)
    init = 1.0 if comfy and noisiest else levels[0].sigma
    return Schedule(chain([*levels, end]), init, end, told)


def peer_noise(settings: Settings) -> NoiseSchedule:
    """The training levels; with zero terminal SNR, the last trace of signal that both peers keep."""
    noise = noise_schedule(settings)
    return noise.without_zero_snr(TERMINAL_ALPHA_BAR) if settings.rescale_betas_zero_snr else noise


def _levels(settings: Settings, noise: NoiseSchedule, steps: int) -> np.ndarray:
    """`ve` of all levels, the end included."""
    if settings.sigmas is not None:
        return np.array(settings.sigmas, np.float64)
    if settings.timesteps is not None:
        return np.append(noise.at(np.array(settings.timesteps, np.float64)), 0.0)
    if not settings.discard_penultimate_sigma:
        return _named(settings, noise, steps)
    ve = _named(settings, noise, steps + 1)
    return np.append(ve[:-2], ve[-1])


def _named(settings: Settings, noise: NoiseSchedule, steps: int) -> np.ndarray:
    name, comfy = str(settings.schedule), settings.preset == "comfy"
    if name == "kl_optimal" and not comfy:
        return sigmas.kl_optimal(float(noise.ve[0]), float(noise.ve[-1]), steps + 1)
    if name == "laplace":
        if steps < 2:
            raise ValueError("ComfyUI's laplace makes N levels and N - 1 steps; take 2 steps or more")
        return sigmas.noise_levels(name, noise, steps)
    if name in A1111_AYS and not comfy:  # read from its end: one step is at the smallest level
        table = np.array(A1111_AYS[name])
        return np.append(sigmas.log_linear(table, steps) if steps > 1 else table[-1:], 0.0)
    if name == "ddim_uniform":
        return np.append(noise.at(sigmas.ddim_uniform(noise.total, steps)), 0.0)
    if name == "beta_timesteps":
        return np.append(noise.at(np.unique(sigmas.beta_timesteps(noise.total, steps))[::-1]), 0.0)
    return np.append(sigmas.noise_levels(name, noise, steps, settings.rho), 0.0)
