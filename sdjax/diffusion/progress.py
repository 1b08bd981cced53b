"""How far a whole run has come where a plan begins that is a segment of it.

Guidance schedules and edited prompts go by progress through the whole run. A segment (`denoising_start`, `strength`, a
refiner's) goes on where the run stands: its first evaluation is number `before`, and its first draw number `drawn`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sdjax.diffusion.plan import Plan


@dataclass(frozen=True, eq=False)
class Run:
    """A plan, and the whole run that it is all or a `segment` of.

    Attributes:
      plan: what is run. whole: the plan of the whole run.
      before: network evaluations of the whole run in front of the plan. drawn: its draws there.
    """

    plan: Plan
    whole: Plan
    before: int = 0
    drawn: int = 0

    @classmethod
    def make(
        cls,
        make: Callable[..., Plan],
        start: float | None = None,
        end: float | None = None,
        strength: float | None = None,
    ) -> "Run":
        """The run from `start`, or the last `strength` of the steps, to `end`, shares of a whole one.

        `make` takes denoising_start, denoising_end and strength. A run from a picture draws its noise from the
        beginning: nothing was drawn before it. Raises what `make` raises.
        """
        whole = make()
        if start is None and end is None and strength is None:
            return cls(whole, whole)
        first = {"denoising_start": start, "strength": strength}
        begins = any(value is not None for value in first.values())
        plan = make(**first, denoising_end=end)
        rest = whole if not begins else plan if end is None else make(**first)
        drawn = 0 if start is None else max(0, whole.draws - rest.draws)
        return cls(plan, whole, max(0, whole.evaluations - rest.evaluations), drawn)
