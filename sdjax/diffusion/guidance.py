"""Guidance: which guider makes one denoiser of another, and how strongly, for every image at every row of a plan.

What a guider does with the network's answers is in `guiders`: classifier-free guidance by a scale s with rescaling by a
share phi (equations 1, 2), several prompts by weights w (4), a prompt and a picture (5). All but the choice of the
guider is data: `Guidance` holds s, phi and w by row and image. The scale may follow the noise level, by a share m of
the guidance that a schedule gives each row:
    s_i = 1 + (s - 1) m_i                                                                               (3)
Where an interval gives no share, s_i is 1 and the result is the answer for the prompt. Then nothing else need be
evaluated, which is data too (`Guidance.alone`): a picture that is guided in 40 % of its rows needs 1.4 evaluations a
row in place of 2. Only runs with an interval have this choice in their program; all others are the one program that
evaluates every branch in every row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.core import short
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.guiders.cfg import ClassifierFree
from sdjax.diffusion.guiders.composed import ComposedPrompts
from sdjax.diffusion.guiders.guider import PROMPT, Guider
from sdjax.diffusion.guiders.pix2pix import InstructPix2Pix
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan_batch import PlanBatch
from sdjax.diffusion.row import append_dims
from sdjax.diffusion.table import Table

Model = Callable[..., jax.Array]
Array = Any  # NumPy on the host, a jax.Array inside jit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guidance:
    """Guidance of b images along the r rows of a table: device data, the rows' axis first as in `Table`."""

    scale: Array  # [r, b], s of equation 1
    rescale: Array | None = None  # [r, b], phi of equation 2; None leaves (2) out
    weights: Array | None = None  # [r, k, b], w of equation 4; None is one prompt of weight 1
    # bool [r, b], where an image's result is the answer for its prompt, which then is all that is evaluated for it;
    # None where every branch is evaluated in every row.
    alone: Array | None = None
    guider: Guider = field(default=ClassifierFree(), metadata={"static": True})

    __repr__ = short.fields

    @classmethod
    def along(
        cls,
        plan: Plan | PlanBatch,
        scales: Sequence[float] | np.ndarray,
        schedules: Sequence[GuidanceSchedule],
        rescales: Sequence[float] | np.ndarray,
        length: int,
        dtype: Any = np.float32,
        weights: np.ndarray | None = None,
        wholes: Sequence[Plan] | None = None,
        image_scales: np.ndarray | None = None,
    ) -> "Guidance":
        """Equation 3 for b images (one entry each in the lists) along `plan.table(length)`; 1 in padded rows.

        Whether there is `alone` depends on the schedules' kinds, never on their numbers, nor on scales or prompts: the
        one program more that runs with an interval have serves all intervals.

        weights: [k, b] of equation 4, the same in every row. wholes: the plans of the whole runs, [b].
        image_scales: s_I of equation 5, [b]; the first of the k is then the picture without the prompt, and its weight
        follows from s.
        """
        plans = plan.plans if isinstance(plan, PlanBatch) else (plan,) * len(scales)
        scale = np.ones((length + 1, len(scales)), dtype)
        for i, (one, whole, s, schedule) in enumerate(zip(plans, wholes or plans, scales, schedules, strict=True)):
            scale[: one.rows - 1, i] = 1 + (float(s) - 1) * schedule.along(one, whole)
        rescale = np.broadcast_to(np.asarray(rescales, dtype), scale.shape)
        if weights is None:
            return cls(scale, rescale, alone=_alone(plans, schedules, scale))
        weights = np.broadcast_to(np.asarray(weights, dtype), (length + 1, *weights.shape))
        if image_scales is None:
            return cls(scale, rescale, weights, guider=ComposedPrompts(weights.shape[1]))
        weights = np.concatenate([((image_scales - scale) / scale)[:, None], weights[:, 1:]], axis=1, dtype=dtype)
        return cls(scale, rescale, weights, guider=InstructPix2Pix())

    def rows(self, start: int, stop: int) -> "Guidance":
        """Rows start .. stop - 1."""
        return jax.tree.map(lambda a: a[start:stop], self)

    def complete(self) -> "Guidance":
        """The same, with every branch evaluated in every row: for a program that has no choice."""
        return replace(self, alone=None)

    def within(self, regions: Array | None) -> "Guidance":
        """One row's guidance, whose prompts count only in `regions` [k, b, h, w, 1], 0 to 1; None is everywhere."""
        if regions is None:
            return self
        return replace(self, weights=append_dims(jnp.asarray(self.weights), regions) * regions)


def _alone(plans: Sequence[Plan], schedules: Sequence[GuidanceSchedule], scale: np.ndarray) -> np.ndarray | None:
    """Where images are outside their intervals or evaluate nothing, [r, b]; None where none has an interval.

    A plan that asks for the unguided prediction needs both answers everywhere.
    """
    if not any(schedule.is_interval for schedule in schedules):
        return None
    alone = np.ones(scale.shape, bool)
    for i, (plan, schedule) in enumerate(zip(plans, schedules, strict=True)):
        outside = (scale[: plan.rows - 1, i] == 1) & schedule.is_interval & (plan.unguided is None)
        alone[: plan.rows - 1, i] = outside | ~plan.evaluate
    return alone


@dataclass(frozen=True, eq=False)
class Guided:
    """A model for `scan`: a network, the guider that makes one of its answers, and how strongly it does.

    Attributes:
      network: (x [(m b), ...], t, *extra) -> raw [(m b), ...], the guider's m branches after each other. t is a scalar
        or [(m b)]; `extra` is what changes from row to row, see `scan.run_rows`.
      guider: see `guiders`. strength: of `extra`, gives the row's `Guidance` for b images.
    """

    network: Model
    guider: Guider
    strength: Callable[..., Any]

    def __call__(self, x: jax.Array, t: jax.Array, *extra: Any) -> jax.Array:
        """x [b, ...], t a scalar or [b] -> raw [b, ...], on its own: a guider with a state starts anew at each call."""
        return self._combined(x, t, None, self.guider.init(x), *extra)[0]

    def evaluate(self, x: jax.Array, row: Table, state: Any, *extra: Any) -> tuple[jax.Array, jax.Array, Any]:
        """One row of a run, for b images -> the raw output to follow, the unguided one, the guider's new state."""
        return self._combined(x, row.timestep, row, state, *extra)

    def _combined(self, x: jax.Array, t: jax.Array, row: Table | None, state: Any, *extra: Any) -> Any:
        m, t = len(self.guider.branches), jnp.asarray(t)
        raw = self.network(jnp.concatenate([x] * m), jnp.concatenate([t] * m) if t.ndim else t, *extra)
        return self.guider(jnp.split(raw, m), x, row, self.strength(*extra), state)


def classifier_free(
    model: Model,
    scale: jax.Array | float,
    rescale: jax.Array | float | None = None,
    weights: jax.Array | None = None,
    regions: jax.Array | None = None,
) -> Guided:
    """The guided model, for b images, of a `model` that takes 2 b: first without the prompt, then with it.

    Args:
      model: (x [2 b, ...], t) -> raw [2 b, ...]; its own conditioning stands in the order of `pair`.
      scale: s of equation 1, a scalar or one per image [b]; 1 is no guidance.
      rescale: phi of equation 2, 0 to 1, a scalar or one per image [b]; None leaves (2) out.
      weights: w of equation 4, [k, b]; `model` then takes (1 + k) b, the k prompts after each other. None is one
        prompt of weight 1.
      regions: [k, b, h, w, 1], where each of them counts; None is everywhere.

    Returns:
      (x [b, ...], t scalar or [b]) -> raw [b, ...], which also gives plans the unguided prediction where they ask for
      it. t reaches `model` as it came, repeated if it is [b].
    """
    guider = ClassifierFree() if weights is None else ComposedPrompts(len(weights))
    strength = Guidance(scale, rescale, weights, guider=guider).within(regions)
    return Guided(model, guider, lambda *_: strength)


def prompt_or_all(network: Callable[[Any], jax.Array], guider: Guider) -> Callable[[tuple[Any, jax.Array]], jax.Array]:
    """A network that evaluates the prompt's branch only where that is enough, on (inputs, alone).

    network: inputs, a tree of arrays [(m b), ...] for the guider's m branches -> raw [(m b), ...]. alone: bool [(m b)].
    Where all are alone, the prompt's answer stands for those of all branches, of which `guider` makes the same.
    """
    m, own = len(guider.branches), guider.branches.index(PROMPT)

    def one(inputs: Any) -> jax.Array:
        return jnp.concatenate([network(jax.tree.map(lambda a: jnp.split(a, m)[own], inputs))] * m)

    return lambda given: lax.cond(jnp.all(given[1]), one, network, given[0])


def pair(uncond: Any, cond: Any) -> Any:
    """The doubled batch's conditioning: leaves [b, ...] of two like trees become [2 b, ...], uncond first."""
    return jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
