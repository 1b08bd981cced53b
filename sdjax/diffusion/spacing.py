"""Which noise levels a run of N steps visits, as the schedulers of diffusers read a checkpoint's config.

"leading", "trailing" and "linspace" are Table 2 of Lin et al. 2023 (arXiv:2305.08891); the other schedules are the
formulas of `sigmas`. Families of classes take both differently:
  DDIM, PNDM, ..   whole timesteps: `timesteps`.
  Euler, Heun,     fractional timesteps; noise `ve` is linear between training levels; karras, exponential and
  LMS, KDPM2       beta span the spaced levels.
  DPM-Solver++,    N + 1 points with the last dropped; whole timesteps; karras, exponential, beta and lu span all
  UniPC, DEIS, SA  training levels, and their timesteps are rounded (karras, lu) or cut (exponential, beta).
Schedules that diffusers lacks span all training levels, and the network is told fractional timesteps, between which
log(ve) is linear. A1111 and ComfyUI have conventions of their own: `a1111_comfy`.
"""

import dataclasses

import numpy as np

from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.diffusion.a1111_comfy import peer_schedule
from sdjax.diffusion.names import schedule_here
from sdjax.diffusion.noise import Level, NoiseSchedule, Settings, float32_ve, noise_schedule
from sdjax.diffusion.schedule import CLEAN as CLEAN
from sdjax.diffusion.schedule import Schedule as Schedule
from sdjax.diffusion.schedule import chain, check_decreasing, last_level, levels_of
from sdjax.diffusion.sigmas import RANGED, SIGMA_SCHEDULES, noise_levels

SPACINGS = ("leading", "trailing", "linspace")
SCHEDULES = (*SPACINGS, *SIGMA_SCHEDULES)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # of training, by diffusers' names
FLAGS = {
    "karras": "use_karras_sigmas",
    "lu": "use_lu_lambdas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


def check_schedule(name: str) -> str:
    """Return `name` if it is one of `SCHEDULES`; otherwise raise ValueError with the nearest name."""
    if name in SCHEDULES:
        return name
    meant = schedule_here(name) if isinstance(name, str) else None
    if meant is not None:
        raise ValueError(f"schedule {name!r} is another program's name; write schedule={meant!r}")
    if name in BETA_SCHEDULES:
        raise ValueError(f"{name!r} is a beta_schedule, which the checkpoint's scheduler config holds, and no schedule")
    if str(name).lower() in ("automatic", "default"):
        raise ValueError(
            f"schedule {name!r} is None here, the checkpoint's own; with preset='a1111' it is A1111's choice"
        )
    raise ValueError(unknown(f"schedule {short(name)} is unknown", name, SCHEDULES))


def schedule_name(settings: Settings) -> str:
    """The schedule that the settings ask for: one of `SCHEDULES`, or "custom" for levels that were given."""
    if settings.sigmas is not None or settings.timesteps is not None:
        return "custom"
    flagged = (name for name, flag in FLAGS.items() if getattr(settings, flag))
    return settings.schedule or next(flagged, settings.timestep_spacing)


def euler_schedule(settings: Settings, steps: int) -> Schedule:
    """The convention of diffusers' Euler, Euler ancestral and Heun.

    x_T is scaled by sqrt(max ve^2 + 1) on "leading", that is by 1 at the network's scale, and by max ve otherwise.
    KDPM2 and LMS have `kdpm2_schedule` and `lms_schedule`.
    """
    if settings.preset != "diffusers":
        return peer_schedule(settings, steps)
    noise, name = sigma_noise(settings), schedule_name(settings)
    ve, timesteps = _given(settings, noise)
    if name in SPACINGS:
        ve, timesteps = _spaced(noise, even_timesteps(settings, steps))
    elif name != "custom":
        ve = noise_levels(name, noise, steps, settings.rho, _euler_span(settings, noise, steps))
        timesteps = noise.timestep(ve)
    levels = levels_of(check_decreasing(ve, name), timesteps)
    init = 1.0 if settings.timestep_spacing == "leading" else levels[0].sigma
    end = last_level(_last(settings, noise, ve), noise.timestep)
    return Schedule(chain([*levels, end]), init, end, noise.timestep)


def kdpm2_schedule(settings: Settings, steps: int) -> Schedule:
    """`euler_schedule` as diffusers' KDPM2 and KDPM2 ancestral have it: on karras the timesteps are rounded."""
    schedule = euler_schedule(settings, steps)
    if settings.preset != "diffusers" or schedule_name(settings) != "karras":
        return schedule
    levels = [*(here for here, _ in schedule.steps), schedule.steps[-1][1]]
    whole = [Level(level.alpha, level.sigma, float(np.round(level.t))) for level in levels]
    return Schedule(chain(whole), schedule.init, whole[-1], schedule.timestep)


def lms_schedule(settings: Settings, steps: int) -> Schedule:
    """`euler_schedule` as diffusers' LMS and DPM-Solver SDE have it: karras takes no range from the config."""
    return euler_schedule(without_range(settings) if schedule_name(settings) == "karras" else settings, steps)


def dpm_schedule(settings: Settings, steps: int) -> Schedule:
    """The convention of diffusers' DPM-Solver++ multistep. x_T is used as it is.

    The single-step class, and UniPC, DEIS and SA have `singlestep_schedule` and `unipc_schedule`.
    """
    return _dpm(settings, steps, cuts_cosine=True)


def singlestep_schedule(settings: Settings, steps: int) -> Schedule:
    """`dpm_schedule` as diffusers' DPM-Solver++ single-step has it: timesteps of cosine betas, too, are rounded."""
    return _dpm(settings, steps)


def unipc_schedule(settings: Settings, steps: int) -> Schedule:
    """`singlestep_schedule` as diffusers' UniPC, DEIS and SA-Solver have it.

    A run that ends at the smallest noise (DEIS and SA: every run; as their classes have no key for it, their
    defaults must say `final_sigmas_type="sigma_min"`) on karras, exponential or beta ends at its own last level, by
    a step that goes nowhere. That differs from the smallest training level only where the config has a `sigma_min`.
    """
    return _dpm(settings, steps, stays=True)


def full_levels(settings: Settings, steps: int) -> list[Level] | None:
    """Levels of a sigma schedule over all training levels, with fractional timesteps; the clean end is left out.

    None where the schedule is one of `SPACINGS`, which choose timesteps and not noise levels.

    Raises:
      ValueError: a schedule that does not end clean.
    """
    if settings.preset != "diffusers":
        schedule = peer_schedule(settings, steps)
        return _ending_clean([here for here, _ in schedule.steps], schedule.end.ve)
    noise, name = sigma_noise(settings), schedule_name(settings)
    if name in SPACINGS:
        return None
    if name == "custom":
        return _ending_clean(levels_of(*_given(settings, noise)), settings.sigmas[-1] if settings.sigmas else 0.0)
    ve = noise_levels(name, noise, steps, settings.rho, _span(settings, noise.ve[0], noise.ve[-1]))
    return levels_of(check_decreasing(ve, name), noise.timestep(ve))


def sigma_noise(settings: Settings) -> NoiseSchedule:
    """The training levels of the classes that divide by alpha, which must not be 0."""
    noise = noise_schedule(settings)
    return noise.without_zero_snr() if settings.rescale_betas_zero_snr else noise


def even_timesteps(settings: Settings, steps: int) -> np.ndarray:
    """N timesteps of DDIM, PNDM (which round them) and Euler, descending. One "linspace" step is t = 0."""
    total = settings.num_train_timesteps
    if settings.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if settings.timestep_spacing == "leading":
        return _in_range(np.arange(steps)[::-1] * (total // steps) + float(settings.steps_offset), settings)
    # arange itself, because the ties of round() hang on its last bit. For some step counts (61,
    # 103, ..) it gives one point too many, which diffusers then visits, at timestep -1.
    return np.arange(total, 0, -total / steps)[:steps].round() - 1


def without_range(settings: Settings) -> Settings:
    """The settings without the config's own range of noise."""
    return dataclasses.replace(settings, sigma_min=None, sigma_max=None)


def _dpm(settings: Settings, steps: int, cuts_cosine: bool = False, stays: bool = False) -> Schedule:
    if settings.preset != "diffusers":
        return peer_schedule(settings, steps)
    noise, name = sigma_noise(settings), schedule_name(settings)
    ve, timesteps = _given(settings, noise)
    if name in SPACINGS:
        ve, timesteps = _spaced(noise, _dpm_timesteps(settings, noise, steps))
    elif name != "custom":
        span = _span(settings, noise.ve[0], noise.ve[-1]) if name != "lu" else None
        ve = noise_levels(name, noise, steps, settings.rho, span)
        cut = name in ("exponential", "beta") or (cuts_cosine and settings.beta_schedule == "squaredcos_cap_v2")
        timesteps = _whole_timesteps(settings, name, steps, cut) if name in FLAGS else noise.timestep(ve)
    levels = levels_of(check_decreasing(ve, name), timesteps)
    noisy = settings.final_sigmas_type == "sigma_min"
    last = float(ve[-1]) if noisy and stays and name in FLAGS else _last(settings, noise, ve)
    end = last_level(last, noise.timestep)
    return Schedule(chain([*levels, end]), 1.0, end, noise.timestep)


def _euler_span(settings: Settings, noise: NoiseSchedule, steps: int) -> tuple[float, float]:
    """The range of a sigma schedule: the spaced levels where diffusers' Euler has that schedule."""
    if schedule_name(settings) not in ("karras", "exponential", "beta"):
        return _span(settings, noise.ve[0], noise.ve[-1])
    spaced, _ = _spaced(noise, even_timesteps(settings, steps))
    return _span(settings, spaced[-1], spaced[0])


def _given(settings: Settings, noise: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """Noise and timesteps of the levels that the caller gave, a last sigma left out; empty where none were."""
    if settings.sigmas is not None:
        ve = np.array(settings.sigmas[:-1], np.float64)
        return ve, noise.timestep(ve)
    return _spaced(noise, np.array(settings.timesteps or (), np.float64))


def _spaced(noise: NoiseSchedule, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise at these timesteps, linear between training levels, and the timesteps."""
    return np.interp(timesteps, np.arange(noise.total), noise.ve), timesteps


def _span(settings: Settings, low: float, high: float) -> tuple[float, float]:
    """The config's own range of noise, or this one."""
    low = float(low) if settings.sigma_min is None else settings.sigma_min
    high = float(high) if settings.sigma_max is None else settings.sigma_max
    if low > high:
        raise ValueError(f"scheduler config: sigma_min {low:g} must be less than sigma_max {high:g}")
    return low, high


def _last(settings: Settings, noise: NoiseSchedule, ve: np.ndarray) -> float:
    """Where a run ends: the caller's last sigma; else 0 or the smallest training level, but never above `ve`."""
    if settings.sigmas is not None:
        return settings.sigmas[-1]
    low, end = float(noise.ve[0]), float(ve[-1])
    if settings.final_sigmas_type != "sigma_min":
        return 0.0
    return low if low < end * (1 - 1e-9) else end  # a step that goes nowhere must not go by a rounding error


def _ending_clean(levels: list[Level], end: float) -> list[Level]:
    if end:
        raise ValueError(f"this sampler ends clean, and these levels end at sigma {end:g}: end them with 0")
    return levels


def _whole_timesteps(settings: Settings, name: str, steps: int, cut: bool) -> np.ndarray:
    """The timesteps of DPM-Solver++ on a schedule of noise: rounded, or `cut` down to whole ones.

    From float32 tables, as in diffusers: the noisiest level of Stable Diffusion is 998.99 there, which is cut to 998.
    """
    ve = float32_ve(settings)
    span = float(ve[0]), float(ve[-1])
    levels = RANGED[name](
        *(span if name == "lu" else _span(settings, *span)), steps, *(() if settings.rho is None else (settings.rho,))
    )
    timesteps = np.interp(np.log(levels), np.log(ve), np.arange(len(ve)))
    return np.floor(timesteps) if cut else timesteps.round()


def _dpm_timesteps(settings: Settings, noise: NoiseSchedule, steps: int) -> np.ndarray:
    """N of DPM-Solver++'s N + 1 timesteps, descending, with a half log SNR >= `lambda_min_clipped`."""
    total = settings.num_train_timesteps
    last = total - int(np.searchsorted(-np.log(noise.ve[::-1]), settings.lambda_min_clipped))
    if settings.timestep_spacing == "linspace":
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
    if settings.timestep_spacing == "leading":
        points = np.arange(steps + 1)[::-1][:-1] * (last // (steps + 1))
        return _in_range(points + float(settings.steps_offset), settings)
    return np.arange(last, 0, -total / steps)[:steps].round() - 1


def _in_range(timesteps: np.ndarray, settings: Settings) -> np.ndarray:
    if timesteps[0] > settings.num_train_timesteps - 1 or timesteps[-1] < 0:
        raise ValueError(
            f"steps_offset {settings.steps_offset} moves timestep {timesteps[0]:g} out of 0 .. "
            f"{settings.num_train_timesteps - 1}; take fewer steps, or schedule='trailing'"
        )
    return timesteps
