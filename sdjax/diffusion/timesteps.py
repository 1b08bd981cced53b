"""The levels of solvers that walk whole timesteps.

Four conventions exist in diffusers:
  DDIM, PNDM   a step goes back T // N timesteps from wherever it stands, whatever the spacing, so on "linspace"
               and (where N does not divide T) "trailing" it lands beside the next timestep. The last step ends at
               alpha = 1 or, with set_alpha_to_one false, at the first training level.
  DDIMInverse  the same steps, each from its end to its start, the last first.
  DDPM         from each timestep to the next; ends at alpha = 1.
  LCM, TCD     N of the K timesteps k T / K - 1 that distillation saw (K = `original_inference_steps`), whatever the
               config's spacing, though not the caller's; ends at alpha = 1 (LCM) or at the first training level (TCD).
On "karras" and the other schedules of noise levels, which these classes lack, all of them walk the full range of
training levels, with fractional timesteps, and end clean. Timesteps that the caller gave end as DDPM, LCM and TCD do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from sdjax.diffusion.noise import Level, NoiseSchedule, Settings, noise_schedule
from sdjax.diffusion.schedule import CLEAN, Schedule, chain
from sdjax.diffusion.spacing import SPACINGS, even_timesteps, full_levels, sigma_noise


@dataclass(frozen=True)
class TrajectorySchedule(Schedule):
    """A schedule that also knows the training levels (`noise`) below each of its own."""

    noise: NoiseSchedule

    def fraction(self, level: Level, share: float) -> Level:
        """The training level at `share`, 0 .. 1, of a level's timestep, rounded down; never a noisier one."""
        # float32 as in diffusers: there 0.7 x 90 is 63, in float64 it is one less when rounded down
        below = self.noise.level(math.floor(np.float32(share) * np.float32(level.t)))
        return below if below.sigma <= level.sigma else level


@dataclass(frozen=True)
class StagedSchedule(Schedule):
    """A schedule that `stages` made of the `plain` one: with a warm-up, or upwards. A part of it is made anew."""

    plain: Schedule
    stages: Callable[[Schedule], Schedule]

    @classmethod
    def of(cls, plain: Schedule, stages: Callable[[Schedule], Schedule]) -> "StagedSchedule":
        """`stages` of `plain`."""
        made = stages(plain)
        return cls(
            made.steps, made.init, made.end, made.timestep, plain, stages, before=plain.before, after=plain.after
        )

    def changed(self, change: Callable[[Schedule], Schedule]) -> Schedule:
        """`Schedule.changed`, and its stages."""
        return self.of(change(self.plain), self.stages)


def ddim_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIM's convention."""
    return _ddim(settings, steps, noise_schedule(settings))


def _ddim(settings: Settings, steps: int, noise: NoiseSchedule) -> Schedule:
    levels = _chosen(settings, steps, noise)
    if levels is None:
        stride = settings.num_train_timesteps // steps
        pairs = tuple((noise.level(t), _at(noise, settings, t - stride)) for t in _rounded_timesteps(settings, steps))
    else:
        pairs = chain([*levels, CLEAN])
    return Schedule(pairs, 1.0, pairs[-1][1], sigma_noise(settings).timestep)


def inverse_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIMInverse's convention: `ddim_schedule` upwards. diffusers' class lacks "linspace"."""
    return StagedSchedule.of(ddim_schedule(settings, steps), _upwards)


def ddpm_schedule(settings: Settings, steps: int) -> Schedule:
    """DDPM's convention."""
    noise = noise_schedule(settings)
    levels = _chosen(settings, steps, noise) or _training_levels(noise, _rounded_timesteps(settings, steps))
    return Schedule(chain([*levels, CLEAN]), 1.0, CLEAN, sigma_noise(settings).timestep)


def pndm_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIM's convention with PNDM's extra second step: the first again, with a second evaluation at its end.

    N + 1 steps for N >= 2. diffusers takes that second step from T // N above its end, which on "linspace"
    and uneven "trailing" is not quite where x stands. Its slopes are those of x / alpha, so a run from zero terminal
    SNR keeps the last trace of signal that the classes have which divide by alpha.
    """
    noise = sigma_noise(settings)
    return StagedSchedule.of(_ddim(settings, steps, noise), partial(_heun_stages, settings, steps, noise))


def prk_schedule(settings: Settings, steps: int) -> Schedule:
    """DDIM's convention with the first three steps as four Runge-Kutta stages each, N + 9 steps in all.

    The stages all begin where the step begins and go to its middle, its middle, its end and its end. Zero terminal
    SNR as in `pndm_schedule`.

    Raises:
      ValueError: less than 4 steps: nothing would be left for the multistep formula.
    """
    noise = sigma_noise(settings)
    return StagedSchedule.of(_ddim(settings, steps, noise), partial(_runge_kutta_stages, settings, steps, noise))


def lcm_schedule(settings: Settings, steps: int) -> Schedule:
    """LCM's convention.

    Raises:
      ValueError: more steps than the network was distilled on, or those more than it was trained on.
    """
    noise = noise_schedule(settings)
    levels = _chosen(settings, steps, noise) or _training_levels(noise, _distilled_timesteps(settings, steps))
    return Schedule(chain([*levels, CLEAN]), 1.0, CLEAN, sigma_noise(settings).timestep)


def tcd_schedule(settings: Settings, steps: int) -> TrajectorySchedule:
    """TCD's convention. Errors as `lcm_schedule`."""
    noise = noise_schedule(settings)
    levels = _chosen(settings, steps, noise)
    end = noise.level(0) if levels is None or settings.timesteps is not None else CLEAN
    levels = levels or _training_levels(noise, _distilled_timesteps(settings, steps))
    return TrajectorySchedule(chain([*levels, end]), 1.0, end, sigma_noise(settings).timestep, noise)


def _upwards(whole: Schedule) -> Schedule:
    pairs = tuple((there, here) for here, there in reversed(whole.steps))
    return replace(whole, steps=pairs, end=pairs[-1][1])


def _heun_stages(settings: Settings, steps: int, noise: NoiseSchedule, whole: Schedule) -> Schedule:
    """`pndm_schedule` of `whole`, which is all steps of DDIM or some of them."""
    plain = whole.steps
    if len(plain) == 1:
        return whole
    if _chosen(settings, steps, noise) is not None:
        extra = plain[0]
    else:
        t = int(plain[1][0].t)
        extra = (noise.level(t + settings.num_train_timesteps // steps), noise.level(t))
    return replace(whole, steps=(plain[0], extra, *plain[1:]))


def _runge_kutta_stages(settings: Settings, steps: int, noise: NoiseSchedule, whole: Schedule) -> Schedule:
    """`prk_schedule` of `whole`, which is all steps of DDIM or some of them."""
    plain = whole.steps
    if len(plain) < 4:
        raise ValueError(
            f"pndm_prk needs at least 4 steps, three of them its Runge-Kutta warm-up, not {len(plain)}; "
            "take more steps, or pndm, whose warm-up is one step"
        )
    starts = [here for here, _ in plain[:4]]
    stages = [
        (here, stop)
        for here, end in pairwise(starts)
        for stop in (*_middles(settings, steps, noise, whole, here, end), end, end)
    ]
    return replace(whole, steps=(*stages, *plain[3:]))


def _chosen(settings: Settings, steps: int, noise: NoiseSchedule) -> list[Level] | None:
    """The levels that a schedule of noise levels or the caller chose; None where each class has its own timesteps."""
    if settings.timesteps is not None and all(t == round(t) for t in settings.timesteps):
        return _training_levels(noise, [round(t) for t in settings.timesteps])
    return full_levels(settings, steps)


def _rounded_timesteps(settings: Settings, steps: int) -> list[int]:
    return [int(t) for t in even_timesteps(settings, steps).round()]


def _distilled_timesteps(settings: Settings, steps: int) -> list[int]:
    """N of the K timesteps k T / K - 1, descending, the noisiest first; or those of the caller's own spacing."""
    if settings.schedule in SPACINGS:
        return _rounded_timesteps(settings, steps)
    total, original = settings.num_train_timesteps, settings.original_inference_steps
    if not 1 <= original <= total:
        raise ValueError(
            f"scheduler config: original_inference_steps must be in 1 .. {total} (num_train_timesteps), not {original}"
        )
    if steps > original:
        raise ValueError(
            f"{steps} steps are more than the {original} that the network was distilled on; take at most "
            f"{original}, or set original_inference_steps in the scheduler config"
        )
    seen = np.arange(original, 0, -1) * (total // original) - 1
    return [int(t) for t in seen[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)]]


def _training_levels(noise: NoiseSchedule, timesteps: list[int]) -> list[Level]:
    return [noise.level(t) for t in timesteps]


def _middles(
    settings: Settings, steps: int, noise: NoiseSchedule, whole: Schedule, here: Level, end: Level
) -> tuple[Level, Level]:
    """Where the first two Runge-Kutta stages of a step end: half a stride below its start and above its end.

    On uneven steps and odd strides these differ; the network is told the second one's timestep at both.
    """
    if _chosen(settings, steps, noise) is not None:
        middle = whole.level(math.sqrt(here.ve * end.ve))
        return middle, middle
    half = settings.num_train_timesteps // steps // 2
    second = noise.level(int(end.t) + half)
    return replace(noise.level(int(here.t) - half), t=second.t), second


def _at(noise: NoiseSchedule, settings: Settings, t: int) -> Level:
    """The level at `t`; below 0 the one at which a DDIM run ends."""
    if t >= 0:
        return noise.level(t)
    return CLEAN if settings.set_alpha_to_one else noise.level(0)
