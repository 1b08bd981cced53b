"""A part of a run: the steps between two shares of the noise, as SDXL's base model hands over to its refiner, or the
last of them, as image-to-image begins from a picture.

A run of T training timesteps is cut at shares f of it. A step belongs to the part if the timestep t that it starts
from does:
    cutoff(f) = round(T - f T),     cutoff(end) <= t < cutoff(start)                                    (1)
as the pipelines of diffusers have it (`denoising_end` of pipeline_stable_diffusion_xl.py, `get_timesteps` of
pipeline_stable_diffusion_xl_img2img.py; Podell et al. 2023, arXiv:2307.01952, section 2.5, gives the refiner the last
200 of 1000 timesteps). At f = 0.8, 50 steps are 40 and 10, 25 are 20 and 5, 30 are 23 and 7.

Image-to-image runs a share of the steps, counted and not measured (Meng et al. 2021, arXiv:2108.01073; `get_timesteps`
of pipeline_stable_diffusion_img2img.py): of N steps at strength s the last
    int(N s),                                                                                          (2)
and none at all where that is 0. Other programs count otherwise: `a1111_comfy.begun`. There a sampler knows no steps but
those of the part.

Between parts the latents are x = alpha x0 + sigma e, what a network sees, whatever scale the sampler thinks in; so one
sampler may go on from another. A part that starts within a run takes such latents in place of noise, adds none, and
holds them to be at its first level: the one reached before on the same schedule, and near it on another.

What becomes of the samplers:
  by single steps (ddim, ddpm, euler and heun and dpm2 with their stochastic kin, dpmpp_sde, lcm, tcd)
                  a part's steps are those of the whole run; with its draws, the parts in turn are that run.
  multistep       a part starts without past predictions, at first order. Orders fall for the whole run's end only.
  pndm, pndm_prk  a part is warmed up anew; pndm_prk needs parts of 4 steps or more.
  dpmpp_2s        a part starts with a new group; its last one may be shorter.
  restart, dpm_fast
                  choose levels of their own: as many steps as the part has, from its first level to its last.
  ddim_inverse    goes the same part upwards, from its end to its start.
Churn is shared among the steps of the whole run. Steps are never cut: diffusers counts the two evaluations of a step of
heun as two timesteps, ends the base's last step after the first of them, and has the refiner make that step again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.diffusion.schedule import Schedule

SHOWN = 8  # timesteps that a message shows
_NUMBER = int | float | np.number


@dataclass(frozen=True)
class Segment:
    """From the share `start` of a run to `end`, both between 0 and 1; None is where the run itself starts or ends.

    strength: 0 to 1, the share of the steps that is run, in place of `start`. last: how many these are; None is what
    equation 2 says. alone: whether the sampler knows no steps but these.

    Raises:
      ValueError: a share out of range, or an end that is not behind the start.
    """

    start: float | None = None
    end: float | None = None
    strength: float | None = None
    last: int | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if self.strength is not None:
            check_strength(self.strength)
            if self.start is not None:
                raise ValueError("strength and denoising_start both say where a run begins; give one of them")
        for name, share in (("denoising_start", self.start), ("denoising_end", self.end)):
            if share is not None and not (is_number(share, _NUMBER) and 0 < share < 1):
                raise ValueError(
                    f"{name} must be a number between 0 and 1, the share of the run that lies before it, not "
                    f"{short(share)}; None leaves that end of the run whole"
                )
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(
                f"denoising_start {self.start:g} must be less than denoising_end {self.end:g}: a run goes from the one "
                "to the other"
            )

    def of(self, schedule: Schedule, total: int) -> Schedule:
        """The schedule's steps in this part of `total` training timesteps, T in equation 1.

        With a start, x_T is at the first level; with an end, the result is x = alpha x0 + sigma e at the last.

        Raises:
          ValueError: no step is left.
        """
        return schedule if self == Segment() else schedule.changed(lambda plain: self._cut(plain, total))

    def skipped(self, steps: int) -> int:
        """How many of a run's steps lie before those that a strength leaves; 0 without one."""
        if self.strength is None:
            return 0
        return max(0, steps - (int(steps * self.strength) if self.last is None else self.last))

    def _cut(self, whole: Schedule, total: int) -> Schedule:
        steps = whole.steps
        # float32 as in diffusers: "linspace" has whole timesteps there that float64 misses by the last bit
        told = np.array([here.t for here, _ in steps], np.float32)
        high, low = _cutoff(self.start, total, math.inf), _cutoff(self.end, total, -math.inf)
        first, stop = int((told >= high).sum()) or self.skipped(len(steps)), int((told >= low).sum())
        if first >= stop:
            raise ValueError(self._nothing_left(told, high, low, total))
        end = whole.end if self.end is None or stop == len(steps) else steps[stop - 1][1]
        init = whole.init if self.start is None and self.strength is None else 1.0
        before = 0 if self.alone else first
        return replace(whole, steps=steps[first:stop], init=init, end=end, before=before, after=len(steps) - stop)

    def _nothing_left(self, told: np.ndarray, high: float, low: float, total: int) -> str:
        """What the timesteps are and which shares would leave a step: the nearest to those asked for."""
        remedies = ["more steps"]
        if self.end is not None and (below := told[told < high]).size and below.max() >= 1:
            remedies.insert(0, f"denoising_end from {1 - math.floor(below.max()) / total:.6g}")
        if self.start is not None and (above := told[told >= low]).size and above.min() < total - 1:
            remedies.insert(0, f"denoising_start up to {1 - (math.floor(above.min()) + 1) / total:.6g}")
        given = [
            f"denoising_{name} {share:g} ({sign} {cutoff:g})"
            for name, share, sign, cutoff in (("start", self.start, "<", high), ("end", self.end, ">=", low))
            if share is not None
        ]
        if self.strength is not None:
            given.insert(0, f"strength {self.strength:g} (the last {len(told) - self.skipped(len(told))} steps)")
            remedies.insert(0, "a larger strength")
        asked = " and ".join(given)
        return (
            f"{asked}: no step is left of {len(told)}, which start at timesteps {_listed(told)}; take "
            f"{' or '.join(remedies)}"
        )


def check_strength(value: Any) -> float:
    """A share of the steps, 0 to 1. Raises ValueError."""
    if not is_number(value, _NUMBER) or not 0 <= value <= 1:
        raise ValueError(
            f"strength must be a number from 0 (the picture stays) to 1 (nothing of it does), not {short(value)}"
        )
    return float(value)


def _cutoff(share: float | None, total: int, nowhere: float) -> float:
    """Equation 1; halves are rounded to even, as by Python in diffusers."""
    return nowhere if share is None else round(total - float(share) * total)


def _listed(told: Sequence[float] | np.ndarray) -> str:
    names = [f"{t:g}" for t in told]
    half = SHOWN // 2
    return ", ".join(names if len(names) <= SHOWN else [*names[:half], "..", *names[-half:]])
