"""How much of the guidance acts at each noise level of a run: the share m of equation 3 in `guidance`."""

import math
from dataclasses import dataclass

import numpy as np

from sdjax.core import short
from sdjax.core.errors import unknown
from sdjax.diffusion.plan import Plan

KINDS = ("constant", "interval", "noise_interval", "linear", "cosine")


@dataclass(frozen=True)
class GuidanceSchedule:
    """The share m of the guidance (equation 3) along a run; as text `kind` or `kind:first:last`.

    A function of the noise level alone, so that all stages of a step and every sampler treat a level alike. Progress
    is 0 at the noisiest level that the network sees, 1 at the cleanest, and even over the levels between.

    Attributes:
      kind: "constant": 1 everywhere.
        "interval": 1 where first <= progress <= last, else 0.
        "noise_interval": 1 where first < sigma / alpha <= last, else 0 (Kynkäänniemi et al. 2024, arXiv:2404.07724,
        whose interval for SDXL is 0.28 to 5.42).
        "linear", "cosine": from `first` at progress 0 to `last` at 1, in a line or half a cosine wave; 0 to 1 where
        not given. Shares above 1 are allowed: linear:0:2 has the mean of "constant" (Wang et al. 2024,
        arXiv:2404.13040).
    """

    kind: str = "constant"
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            said = f"guidance_schedule {short.short(self.kind)} is unknown"
            raise ValueError(unknown(said, self.kind, KINDS, f"known: {_USAGE}"))
        if not (math.isfinite(self.first) and self.first >= 0 and math.isfinite(self.last) and self.last >= 0):
            raise ValueError(f"guidance_schedule {self}: both numbers must be finite and >= 0")
        if self.is_interval and self.first > self.last:
            raise ValueError(f"guidance_schedule {self}: the interval is empty; give the smaller number first")
        if self.kind == "interval" and self.last > 1:
            raise ValueError(f"guidance_schedule {self}: progress goes from 0 to 1; sigmas belong to noise_interval")

    def __str__(self) -> str:
        return self.kind if self.kind == "constant" else f"{self.kind}:{self.first!r}:{self.last!r}"

    @property
    def is_interval(self) -> bool:
        """Whether it leaves rows without guidance, between others that have all of it."""
        return "interval" in self.kind

    @classmethod
    def read(cls, value: "str | GuidanceSchedule | None") -> "GuidanceSchedule":
        """From its text; None is "constant". Raises ValueError for anything else."""
        if isinstance(value, cls):
            return value
        if value is not None and not isinstance(value, str):
            raise ValueError(f"guidance_schedule must be a string ({_USAGE}), not {short.short(value)}")
        kind, *numbers = ("constant" if value is None else value).split(":")
        few = (0,) if kind == "constant" else (2,) if "interval" in kind else (0, 2)
        try:
            ends = [float(number) for number in numbers]
        except ValueError:
            ends = [math.nan] * 3
        if kind in KINDS and len(ends) not in few:
            raise ValueError(f"guidance_schedule {value!r} cannot be understood; known: {_USAGE}")
        return cls(kind, *ends[:2])

    def along(self, plan: Plan, whole: Plan | None = None) -> np.ndarray:
        """m of equation 3 for each of the plan's n rows before the result, float64 [n].

        whole: the plan of the whole run, where this one is a part of it.
        """
        if self.kind == "constant":
            return np.ones(plan.rows - 1)
        if self.kind == "noise_interval":
            return ((self.first < _noise(plan)) & (_noise(plan) <= self.last)).astype(np.float64)
        along = progress(plan, whole)
        if self.kind == "interval":
            return ((self.first <= along) & (along <= self.last)).astype(np.float64)
        rise = along if self.kind == "linear" else (1 - np.cos(np.pi * along)) / 2
        return self.first + (self.last - self.first) * rise


_USAGE = "constant, interval:first:last, noise_interval:low:high, linear[:first:last], cosine[:first:last]"


def progress(plan: Plan, whole: Plan | None = None) -> np.ndarray:
    """How far each of the plan's n rows is, float64 [n], by its level's place among those the network sees.

    0 at the noisiest, 1 at the cleanest (also where there is only one); the same for rows at one level, as the stages
    of Heun's method are, and for a level visited again. Where the plan is a part of a `whole` one, the levels are its.
    """
    with np.errstate(divide="ignore"):
        noise, all_noise = (np.log(_noise(one)).round(9) for one in (plan, whole or plan))
    seen = np.unique(all_noise[(whole or plan).evaluate])
    place = np.clip(np.searchsorted(seen, noise), 0, len(seen) - 1)
    return 1 - place / max(len(seen) - 1, 1)


def _noise(plan: Plan) -> np.ndarray:
    """sigma / alpha of the plan's n rows, [n]; infinite at pure noise."""
    with np.errstate(divide="ignore"):
        return plan.sigma[:-1] / plan.alpha[:-1]
