"""The cells of the grid, and their plans: what can be wrong with one is told here, before anything is compiled."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sdjax

OWN = "default"
"""Names the schedule of the checkpoint's own config."""


@dataclass(frozen=True)
class Cell:
    """One setting. `schedule` is a name, or OWN."""

    sampler: str
    schedule: str
    steps: int
    guidance_scale: float

    def __str__(self) -> str:
        return f"{self.sampler}, {self.schedule}, {self.steps} steps, scale {self.guidance_scale:g}"

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.sampler}-{self.schedule}-{self.steps:04d}-{self.guidance_scale:g}"


def grid(
    samplers: Sequence[str], schedules: Sequence[str], steps: Sequence[int], guidance_scales: Sequence[float]
) -> list[Cell]:
    """Every combination once.

    Raises:
      ValueError: nothing to combine, or a guidance scale that is no finite number >= 0.
    """
    axes: dict[str, Sequence[Any]] = {
        "samplers": samplers,
        "schedules": schedules,
        "steps": steps,
        "guidance_scales": guidance_scales,
    }
    for name, values in axes.items():
        if not values:
            raise ValueError(f"--{name} is empty: name at least one")
    for scale in guidance_scales:
        if not math.isfinite(scale) or scale < 0:
            raise ValueError(f"--guidance_scales: {scale:g} is no finite number >= 0 (1 is the prompt alone)")
    combined = itertools.product(samplers, schedules, steps, guidance_scales)
    return list(dict.fromkeys(Cell(*values) for values in combined))


def plans(sd: sdjax.StableDiffusion, cells: Iterable[Cell]) -> dict[Cell, sdjax.Plan]:
    """Each cell's plan, the one with the fewest network evaluations first.

    Raises:
      ValueError: settings without a plan: what is wrong with the first, and which others there are.
    """
    made: dict[tuple[str, str, int], sdjax.Plan | None] = {}
    found, wrong = {}, {}
    for cell in cells:
        key = (cell.sampler, cell.schedule, cell.steps)
        try:
            made[key] = made[key] if key in made else _plan(sd, cell)
        except ValueError as error:
            made[key], wrong[key] = None, str(error)
        found[cell] = made[key]
    if wrong:
        (sampler, schedule, steps), reason = next(iter(wrong.items()))
        others = ", ".join(f"{a} on {b} in {n}" for a, b, n in list(wrong)[1:6])
        more = f" (likewise or for a reason of their own: {others}{' ..' if len(wrong) > 6 else ''})" if others else ""
        raise ValueError(f"{sampler} on schedule {schedule} in {steps} steps: {reason}{more}")
    plans = {cell: plan for cell, plan in found.items() if plan is not None}
    return dict(sorted(plans.items(), key=lambda item: item[1].evaluations))


def _plan(sd: sdjax.StableDiffusion, cell: Cell) -> sdjax.Plan:
    return sd.plan(cell.sampler, cell.steps, None if cell.schedule == OWN else cell.schedule)
