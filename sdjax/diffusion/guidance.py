"""Classifier-free guidance: one denoiser from another, its strength given for every image at every row of a plan.

    raw = u + s (c - u)  =  c + (s - 1) (c - u)                                                         (1)
                                (Ho & Salimans 2022, arXiv:2207.12598, equation 6 with s = 1 + w)
where u and c are the network's outputs without and with the prompt. Both come from one doubled batch, [uncond, cond],
as in diffusers. (1) is linear and its weights add up to 1, so it may act on the raw output of any prediction type; its
second form is exactly c at s = 1. A large s spreads the output; rescaling takes it back by a share phi:
    raw' = phi raw std(c) / std(raw) + (1 - phi) raw    (Lin et al. 2023, arXiv:2305.08891, equations 15, 16)    (2)
The scale may follow the noise level, by a share m of the guidance that the schedule gives each row:
    s_i = 1 + (s - 1) m_i                                                                               (3)
Several prompts may pull together, each by its share w_k (Liu et al. 2022, arXiv:2206.01714, equation 11):
    c = sum_k w_k c_k + (1 - sum_k w_k) u                                                               (4)
each, where it has a region of its own, in that part of the picture alone: w_k times a mask `h w` (Bar-Tal et al. 2023,
arXiv:2302.08113, equation 5 with the prompts' masks as weights). A network that also looks at a picture may be pulled
by that with a scale s_I of its own. With i its output for the picture without the prompt and u for neither,
    raw = u + s_I (i - u) + s (c - i)       (Brooks et al. 2023, arXiv:2211.09800, equation 3)          (5)
which is (1) of (4) for the pair i, c of shares (s_I - s) / s and 1.
All of it is data: `Guidance` holds s and phi by row and image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.core import short
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan_batch import PlanBatch
from sdjax.diffusion.row import append_dims

Model = Callable[[jax.Array, jax.Array], jax.Array]
Array = Any  # NumPy on the host, a jax.Array inside jit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guidance:
    """Guidance of b images along the r rows of a table: device data, the rows' axis first as in `Table`."""

    scale: Array  # [r, b], s of equation 1
    rescale: Array  # [r, b], phi of equation 2
    weights: Array | None = None  # [r, k, b], w of equation 4; None is one prompt of share 1
    shown: bool = field(default=False, metadata={"static": True})  # whether the first of the k is i of equation 5

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

        weights: [k, b] of equation 4, the same in every row. wholes: the plans of the whole runs, [b].
        image_scales: s_I of equation 5, [b]; the first of the k is then the picture without the prompt, and its share
        follows from s.
        """
        plans = plan.plans if isinstance(plan, PlanBatch) else (plan,) * len(scales)
        scale = np.ones((length + 1, len(scales)), dtype)
        for i, (one, whole, s, schedule) in enumerate(zip(plans, wholes or plans, scales, schedules, strict=True)):
            scale[: one.rows - 1, i] = 1 + (float(s) - 1) * schedule.along(one, whole)
        if weights is not None:
            weights = np.broadcast_to(np.asarray(weights, dtype), (length + 1, *weights.shape))
        if weights is not None and image_scales is not None:
            weights = np.concatenate([((image_scales - scale) / scale)[:, None], weights[:, 1:]], axis=1, dtype=dtype)
        return cls(scale, np.broadcast_to(np.asarray(rescales, dtype), scale.shape), weights, image_scales is not None)

    def rows(self, start: int, stop: int) -> "Guidance":
        """Rows start .. stop - 1."""
        return jax.tree.map(lambda a: a[start:stop], self)


def classifier_free(
    model: Model,
    scale: jax.Array | float,
    rescale: jax.Array | float | None = None,
    weights: jax.Array | None = None,
    regions: jax.Array | None = None,
    shown: bool = False,
) -> Model:
    """The guided model, for b images, of a `model` that takes 2 b: first without the prompt, then with it.

    Args:
      model: (x [2 b, ...], t) -> raw [2 b, ...]; its own conditioning stands in the order of `pair`.
      scale: s of equation 1, a scalar or one per image [b]; 1 is no guidance.
      rescale: phi of equation 2, 0 to 1, a scalar or one per image [b]; None leaves (2) out.
      weights: w of equation 4, [k, b]; `model` then takes (1 + k) b, the k prompts after each other. None is one
        prompt of share 1.
      regions: [k, b, h, w, 1], where each of them counts; None is everywhere.
      shown: whether the first of the k is i of equation 5; (2) then takes its spread from the last, as diffusers does.

    Returns:
      (x [b, ...], t scalar or [b]) -> raw [b, ...]. t reaches `model` as it came, repeated if it is [b].
    """
    parts = 2 if weights is None else 1 + len(weights)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.asarray(t)
        raw = model(jnp.concatenate([x] * parts), jnp.concatenate([t] * parts) if t.ndim else t)
        uncond, *conds = jnp.split(raw, parts)
        cond = conds[0] if weights is None else _mixed(uncond, conds, weights, regions)
        return combine(uncond, cond, scale, rescale, conds[-1] if shown else cond)

    return guided


def combine(
    uncond: jax.Array,
    cond: jax.Array,
    scale: jax.Array | float,
    rescale: jax.Array | float | None = None,
    like: jax.Array | None = None,
) -> jax.Array:
    """Equations 1 and 2: u and c [b, ...], scale and rescale scalars or [b] -> raw [b, ...].

    like: whose spread (2) goes back to; None is c.
    """
    s = append_dims(jnp.asarray(scale, cond.dtype), cond)
    raw = cond + (s - 1) * (cond - uncond)
    if rescale is None:
        return raw
    phi = jnp.asarray(rescale, cond.dtype)
    return lax.cond(jnp.any(phi > 0), _rescaled, lambda raw, cond, phi: raw, raw, cond if like is None else like, phi)


def _mixed(uncond: jax.Array, conds: Sequence[jax.Array], weights: jax.Array, regions: jax.Array | None) -> jax.Array:
    """Equation 4; exactly c_1 where it alone has a share, of 1."""
    if regions is not None:
        weights = append_dims(weights, regions) * regions
    rest = append_dims(1 - weights.sum(0), uncond) * uncond
    return sum((append_dims(w, c) * c for w, c in zip(weights, conds, strict=True)), rest)


def _rescaled(raw: jax.Array, cond: jax.Array, phi: jax.Array) -> jax.Array:
    """Equation 2; standard deviations over all but the first axis. An output without any spread stays as it is."""
    over = tuple(range(1, raw.ndim))
    spread = jnp.var(raw, axis=over)
    ratio = jnp.sqrt(jnp.var(cond, axis=over) / jnp.where(spread > 0, spread, 1))
    return raw * append_dims(1 + phi * (jnp.where(spread > 0, ratio, 1) - 1), raw)


def pair(uncond: Any, cond: Any) -> Any:
    """The doubled batch's conditioning: leaves [b, ...] of two like trees become [2 b, ...], uncond first."""
    return jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
