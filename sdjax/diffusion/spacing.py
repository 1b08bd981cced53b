"""Which noise levels a run of N steps visits, and from which to which each step goes.

Three conventions exist in diffusers, and a checkpoint's config means something different in each:
  DDIM, PNDM    whole timesteps; a step goes back T // N timesteps from wherever it stands, whatever the
                spacing, so on "linspace" and (where N does not divide T) "trailing" it lands beside the next
                timestep. The last step ends at alpha = 1 or, with set_alpha_to_one false, at the first
                training level.
  Euler family  fractional timesteps; noise `ve` is linear between training levels; ends at 0.
  DPM-Solver++  N + 1 points with the last dropped, whole timesteps; ends at 0.
"leading", "trailing" and "linspace" are Table 2 of Lin et al. 2023 (arXiv:2305.08891). "karras" is equation 5
of Karras et al. 2022 (arXiv:2206.00364) with rho = 7:
    ve_i = (ve_max^(1/rho) + i / (N - 1) (ve_min^(1/rho) - ve_max^(1/rho)))^rho                        (1)
over the first and last spaced levels (Euler) or all training levels (DPM-Solver++, which also rounds the
timesteps).
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.diffusion.noise import Level, NoiseSchedule, Settings, noise_schedule

SPACINGS = ("leading", "trailing", "linspace")
SCHEDULES = (*SPACINGS, "karras")
CLEAN = Level(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """The steps of a run. `steps`: (level it starts from, level it goes to), noisiest first.

    `init`: scale of the unit Gaussian x_T at the network's own scale on the first level. `end`: the level of
    the result, whose alpha is 1 where the result is left on the variance-exploding scale. `timestep`: what the
    network is told at noise `ve` between levels, for solvers that evaluate there.
    """

    steps: tuple[tuple[Level, Level], ...]
    init: float
    end: Level
    timestep: Callable[[Any], Any]

    def level(self, ve: float) -> Level:
        """The level of variance-exploding noise `ve`, anywhere between those visited."""
        return Level.from_ve(ve, float(self.timestep(ve)))

    @property
    def gap(self) -> str:
        """Why a step starts neither where the last one ended nor where it began (made twice); or ""."""
        for (begun, there), (here, _) in zip(self.steps, self.steps[1:], strict=False):
            if here.sigma not in (there.sigma, begun.sigma):
                return f"a step goes to timestep {there.t:g} and the next starts from {here.t:g}"
        return ""


def check_schedule(name: str) -> str:
    """Return `name` if it is one of `SCHEDULES`; otherwise raise ValueError with the nearest name."""
    if name in SCHEDULES:
        return name
    near = difflib.get_close_matches(str(name), SCHEDULES, n=1, cutoff=0.0)
    raise ValueError(f"schedule {name!r} is unknown; nearest: {near[0]!r}; known: {', '.join(SCHEDULES)}")


def ddim_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIM's convention.

    On "karras", which diffusers' DDIM lacks: all training levels, fractional timesteps, ending clean.
    """
    if settings.use_karras_sigmas:
        levels = _full_karras(settings, steps)
        return Schedule(_chain([*levels, CLEAN]), 1.0, CLEAN, _sigma_noise(settings).timestep)
    noise, stride = noise_schedule(settings), settings.num_train_timesteps // steps
    timesteps = _rounded_timesteps(settings, steps)
    pairs = tuple((noise.level(t), _at(noise, settings, t - stride)) for t in timesteps)
    return Schedule(pairs, 1.0, pairs[-1][1], noise.timestep)


def pndm_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIM's convention with PNDM's extra second step: the first again, with a second evaluation at its end.

    N + 1 steps for N >= 2. diffusers takes that second step from T // N above its end, which on "linspace"
    and uneven "trailing" is not quite where x stands.
    """
    whole = ddim_schedule(settings, steps)
    plain = whole.steps
    if steps == 1:
        return whole
    if settings.use_karras_sigmas:
        extra = plain[0]
    else:
        noise, t = noise_schedule(settings), int(plain[1][0].t)
        extra = (noise.level(t + settings.num_train_timesteps // steps), noise.level(t))
    return replace(whole, steps=(plain[0], extra, *plain[1:]))


def euler_schedule(settings: Settings, steps: int) -> Schedule:
    """The convention of diffusers' Euler family.

    x_T is scaled by sqrt(max ve^2 + 1) on "leading", that is by 1 at the network's scale, and by max ve
    otherwise.
    """
    noise = _sigma_noise(settings)
    timesteps = _even_timesteps(settings, steps)
    ve = np.interp(timesteps, np.arange(noise.total), noise.ve)
    if settings.use_karras_sigmas:
        ve = _karras(settings, ve[-1], ve[0], steps)
        timesteps = noise.timestep(ve)
    last = float(noise.ve[0]) if settings.final_sigmas_type == "sigma_min" else 0.0
    levels = [Level.from_ve(s, t) for s, t in zip(_decreasing(ve), timesteps, strict=True)]
    init = 1.0 if settings.timestep_spacing == "leading" else levels[0].sigma
    return Schedule(_chain([*levels, Level.from_ve(last, 0.0)]), init, Level(1.0, last, 0.0), noise.timestep)


def dpm_schedule(settings: Settings, steps: int) -> Schedule:
    """The convention of diffusers' DPM-Solver++ family. x_T is used as it is."""
    noise = _sigma_noise(settings)
    if settings.use_karras_sigmas:
        levels = _full_karras(settings, steps, whole=settings.beta_schedule != "squaredcos_cap_v2")
    else:
        timesteps = _dpm_timesteps(settings, noise, steps)
        ve = _decreasing(np.interp(timesteps, np.arange(noise.total), noise.ve))
        levels = [Level.from_ve(s, t) for s, t in zip(ve, timesteps, strict=True)]
    last = float(noise.ve[0]) if settings.final_sigmas_type == "sigma_min" else 0.0
    end = Level.from_ve(last, 0.0)
    return Schedule(_chain([*levels, end]), 1.0, end, noise.timestep)


def _chain(levels: Sequence[Level]) -> tuple[tuple[Level, Level], ...]:
    return tuple(zip(levels[:-1], levels[1:], strict=True))


def _at(noise: NoiseSchedule, settings: Settings, t: int) -> Level:
    """The level at `t`; below 0 the one at which a DDIM run ends."""
    if t >= 0:
        return noise.level(t)
    return CLEAN if settings.set_alpha_to_one else noise.level(0)


def _sigma_noise(settings: Settings) -> NoiseSchedule:
    noise = noise_schedule(settings)
    return noise.without_zero_snr() if settings.rescale_betas_zero_snr else noise


def _even_timesteps(settings: Settings, steps: int) -> np.ndarray:
    """N timesteps of DDIM, PNDM (which round them) and Euler, descending. One "linspace" step is t = 0."""
    total = settings.num_train_timesteps
    if settings.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if settings.timestep_spacing == "leading":
        return _in_range(np.arange(steps)[::-1] * (total // steps) + float(settings.steps_offset), settings)
    # arange itself, because the ties of round() hang on its last bit. For some step counts (61,
    # 103, ..) it gives one point too many, which diffusers then visits, at timestep -1.
    return np.arange(total, 0, -total / steps)[:steps].round() - 1


def _rounded_timesteps(settings: Settings, steps: int) -> list[int]:
    return [int(t) for t in _even_timesteps(settings, steps).round()]


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


def _decreasing(ve: np.ndarray) -> np.ndarray:
    if not np.isfinite(ve).all() or (np.diff(ve) >= 0).any():
        raise ValueError(
            f"{len(ve)} steps are too many for this schedule: two of them fall on one noise level; "
            "take fewer steps, or schedule='karras'"
        )
    return ve


def _karras(settings: Settings, low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Equation 1 from `high` to `low`, unless the config names its own range."""
    low = low if settings.sigma_min is None else settings.sigma_min
    high = high if settings.sigma_max is None else settings.sigma_max
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def _full_karras(settings: Settings, steps: int, whole: bool = False) -> list[Level]:
    """Equation 1 over all training levels; `whole` rounds the timesteps that the network is told."""
    noise = _sigma_noise(settings)
    ve = _decreasing(_karras(settings, noise.ve[0], noise.ve[-1], steps))
    timesteps = noise.timestep(ve).round() if whole else noise.timestep(ve)
    return [Level.from_ve(s, t) for s, t in zip(ve, timesteps, strict=True)]
