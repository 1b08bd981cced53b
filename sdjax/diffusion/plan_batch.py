"""Lanes: a batch in which every image has a plan of its own.

A table is data, and all its fields may carry a last axis b. So plans of different samplers, schedules and step counts
stand side by side, each padded to the longest, and run as one batch: an image whose own plan is done waits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from sdjax.core.short import short
from sdjax.diffusion.plan import Plan, padded_length
from sdjax.diffusion.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class PlanBatch:
    """b plans side by side; taken wherever a `Plan` is, for a batch of b images."""

    plans: tuple[Plan, ...]

    def __repr__(self) -> str:
        """Of one line: the first plans of them."""
        shown = [f"{plan.sampler}, {plan.steps} steps" for plan in self.plans[:3]]
        return f"Lanes({len(self.plans)} plans: {'; '.join(shown)}{'; ..' if len(self.plans) > 3 else ''})"

    @property
    def rows(self) -> int:
        """Rows until the longest plan's result."""
        return max(plan.rows for plan in self.plans)

    @property
    def draws(self) -> int:
        """Gaussian draws of the plan that has most."""
        return max(plan.draws for plan in self.plans)

    @property
    def evaluations(self) -> np.ndarray:
        """int [b], network evaluations of each image. The batch runs the network until the last is done."""
        return np.array([plan.evaluations for plan in self.plans])

    @property
    def sampler(self) -> str:
        """The samplers' names, each once."""
        return ", ".join(dict.fromkeys(plan.sampler for plan in self.plans))

    def table(self, length: int | None = None, dtype: Any = np.float32) -> Table:
        """The plans' tables with a last axis b, padded to `length` + 1 rows; see `Plan.table`.

        Where some of the plans ask for unguided predictions, the others give them no weight.
        """
        length = padded_length(self.rows - 1) if length is None else length
        tables = [plan.table(length, dtype) for plan in self.plans]
        if any(table.u_weights is not None for table in tables):
            none = np.zeros_like(tables[0].d_weights)
            tables = [table if table.u_weights is not None else replace(table, u_weights=none) for table in tables]
        return replace(jax.tree.map(lambda *fields: np.stack(fields, -1), *tables), slot=tables[0].slot)

    def check_batch(self, b: int) -> None:
        """Raises ValueError where `b` images are not one per plan."""
        if b != len(self.plans):
            raise ValueError(f"{len(self.plans)} plans are stacked, one per image, but the batch holds {b} images")


def stack_plans(plans: Sequence[Plan]) -> PlanBatch:
    """Image i of a batch follows plans[i]. Each comes out as it would alone.

    Raises:
      ValueError: the list is empty, or an entry is no plan.
    """
    if isinstance(plans, Plan) or not isinstance(plans, Iterable):
        raise ValueError(f"stack_plans takes a list of plans, one per image, not {short(plans)}")
    plans = tuple(plans)
    if not plans:
        raise ValueError("stack_plans needs at least one plan")
    for i, plan in enumerate(plans):
        if not isinstance(plan, Plan):
            raise ValueError(f"plans[{i}] is of type {type(plan).__name__}; make plans with sdjax.plan(...)")
    return PlanBatch(plans)
