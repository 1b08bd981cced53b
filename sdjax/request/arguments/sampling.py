"""Which solver runs, over which noise levels, in how many steps: what makes a plan for each picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sdjax.diffusion.plan import Plan
from sdjax.diffusion.progress import Run
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.table import Linear
from sdjax.model.spec import ModelSpec
from sdjax.request import checks
from sdjax.request.arguments.handoff import Handoff
from sdjax.request.arguments.topic import NONE, Flag, Topic, argument

SamplerLike = str | Sampler | Callable[..., Linear]
Options = Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Sampling(Topic):
    """Each one for all pictures, or a list with one for each; see `generate` and `sdjax.plan`."""

    sampler: SamplerLike | Sequence[SamplerLike] = argument(
        "dpmpp_2m", str, each="picture",
        flag=Flag("By name: ddim, pndm, euler, dpmpp_2m ...; sdjax.samplers() in Python."),
    )  # fmt: skip
    steps: int | None | Sequence[int | None] = argument(
        20, int, span=(1, 10_000), each="picture", flag=Flag("Steps of the sampler.", least=1)
    )
    schedule: str | None | Sequence[str | None] = argument(
        None, str, NONE, each="picture",
        flag=Flag("By name: leading, trailing, karras, ays ...; default: the model's own."),
    )  # fmt: skip
    preset: str | None | Sequence[str | None] = argument(
        None, str, NONE, each="picture",
        flag=Flag("Whose noise levels (diffusers, a1111, comfy), or a few-step LoRA's sampler (lcm, ..)."),
    )  # fmt: skip
    eta: float | None | Sequence[float | None] = argument(
        None, float, int, NONE, span=(-100, 100), each="picture",
        flag=Flag("Share of fresh noise; default: the sampler's own.", least=0.0),
    )  # fmt: skip
    sampler_options: Options | None | Sequence[Options | None] = argument(None, dict, NONE, each="picture")

    def runs(self, spec: ModelSpec, handoff: Handoff, strengths: Sequence[float | None]) -> tuple[Run, ...]:
        """A run for each picture, which begins from a picture where it has a strength; one object for equal settings.

        Raises ValueError.
        """
        columns = self._columns(len(strengths))
        made: dict[str, Run] = {}
        runs = []
        for i, strength in enumerate(strengths):
            own = {name: column[i] for name, column in columns.items()}
            options = _options(own)
            key = repr((own["sampler"], own["steps"], own["schedule"], strength, sorted(options.items())))
            if key not in made:
                make = partial(spec.plan, own["sampler"], own["steps"], own["schedule"], **options)
                run = Run.make(make, handoff.denoising_start, handoff.denoising_end, strength)
                # A1111 counts the evaluations that a prompt's edits go by from the picture on
                made[key] = replace(run, before=0) if own["preset"] == "a1111" and strength is not None else run
            runs.append(made[key])
        return tuple(runs)

    def checked(self, plans: Sequence[Plan]) -> "Sampling":
        """As these plans have it: a solver of one's own by its name, steps where the levels told them."""
        columns = self._columns(len(plans))
        columns |= {"sampler": [plan.sampler for plan in plans], "steps": [plan.steps for plan in plans]}
        columns["sampler_options"] = [_named_options(given) or None for given in columns["sampler_options"]]
        return replace(self, **{name: checks.as_given(getattr(self, name), one) for name, one in columns.items()})

    def _columns(self, count: int) -> dict[str, list[Any]]:
        return {name: checks.spread(value, count, name) for name, value in self.items()}


# No names for an entry of `sampler_options`: these have an argument of their own.
TAKEN = (
    "self", "scheduler", *(name for name in Sampling.defaults() if name != "sampler_options"), "denoising_start",
    "denoising_end", "strength",
)  # fmt: skip


def _named_options(value: Any) -> dict[str, Any]:
    """A picture's `sampler_options`, in types that JSON knows. Raises ValueError."""
    return checks.check_options(value, TAKEN)


def _options(own: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture's plan is made of besides sampler, steps and schedule."""
    # NumPy's float32 would take the plan's float64 arithmetic down with it.
    eta = own["eta"].item() if isinstance(own["eta"], np.generic) else own["eta"]
    given = {name: value for name, value in (("preset", own["preset"]), ("eta", eta)) if value is not None}
    return {**_named_options(own["sampler_options"]), **given}
