"""Where a plan lies in a whole run: what changes along a run must not begin anew where a part of it does."""

from collections.abc import Callable
from dataclasses import dataclass

from sdjax.diffusion.plan import Plan


@dataclass(frozen=True, eq=False)
class Run:
    """A plan, and the run that it is all or a `part` of.

    Attributes:
      plan: what is run. whole: the plan of the whole run.
      before: network evaluations of the whole run in front of the plan. drawn: its draws there.
    """

    plan: Plan
    whole: Plan
    before: int = 0
    drawn: int = 0

    @classmethod
    def make(cls, make: Callable[..., Plan], start: float | None = None, end: float | None = None) -> "Run":
        """The run from `start` to `end`, shares of a whole one; `make` takes denoising_start and denoising_end.

        Raises what `make` raises.
        """
        whole = make()
        if start is None and end is None:
            return cls(whole, whole)
        plan = make(denoising_start=start, denoising_end=end)
        rest = whole if start is None else plan if end is None else make(denoising_start=start)
        return cls(plan, whole, max(0, whole.evaluations - rest.evaluations), max(0, whole.draws - rest.draws))
