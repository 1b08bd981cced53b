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

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax import short
from sdjax.diffusion.lanes import Lanes
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.row import beside

Model = Callable[[jax.Array, jax.Array], jax.Array]
Array = Any  # NumPy on the host, a jax.Array inside jit

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
            near = difflib.get_close_matches(str(self.kind), KINDS, n=1, cutoff=0.0)
            told = short.short(self.kind)
            raise ValueError(f"guidance_schedule {told} is unknown; nearest: {near[0]!r}; known: {_USAGE}")
        if not (math.isfinite(self.first) and self.first >= 0 and math.isfinite(self.last) and self.last >= 0):
            raise ValueError(f"guidance_schedule {self}: both numbers must be finite and >= 0")
        if "interval" in self.kind and self.first > self.last:
            raise ValueError(f"guidance_schedule {self}: the interval is empty; give the smaller number first")
        if self.kind == "interval" and self.last > 1:
            raise ValueError(f"guidance_schedule {self}: progress goes from 0 to 1; sigmas belong to noise_interval")

    def __str__(self) -> str:
        return self.kind if self.kind == "constant" else f"{self.kind}:{self.first!r}:{self.last!r}"

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

    def shares(self, plan: Plan, whole: Plan | None = None) -> np.ndarray:
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Guidance:
    """Guidance of b images along the r rows of a table: device data, the rows' axis first as in `Table`."""

    scale: Array  # [r, b], s of equation 1
    rescale: Array  # [r, b], phi of equation 2
    shares: Array | None = None  # [r, k, b], w of equation 4; None is one prompt of share 1
    shown: bool = field(default=False, metadata={"static": True})  # whether the first of the k is i of equation 5

    __repr__ = short.fields

    @classmethod
    def along(
        cls,
        plan: Plan | Lanes,
        scales: Sequence[float] | np.ndarray,
        schedules: Sequence[GuidanceSchedule],
        rescales: Sequence[float] | np.ndarray,
        length: int,
        dtype: Any = np.float32,
        shares: np.ndarray | None = None,
        wholes: Sequence[Plan] | None = None,
        image_scales: np.ndarray | None = None,
    ) -> "Guidance":
        """Equation 3 for b images (one entry each in the lists) along `plan.table(length)`; 1 in padded rows.

        shares: [k, b] of equation 4, the same in every row. wholes: the plans of the whole runs, [b].
        image_scales: s_I of equation 5, [b]; the first of the k is then the picture without the prompt, and its share
        follows from s.
        """
        plans = plan.plans if isinstance(plan, Lanes) else (plan,) * len(scales)
        scale = np.ones((length + 1, len(scales)), dtype)
        for i, (one, whole, s, schedule) in enumerate(zip(plans, wholes or plans, scales, schedules, strict=True)):
            scale[: one.rows - 1, i] = 1 + (float(s) - 1) * schedule.shares(one, whole)
        if shares is not None:
            shares = np.broadcast_to(np.asarray(shares, dtype), (length + 1, *shares.shape))
        if shares is not None and image_scales is not None:
            shares = np.concatenate([((image_scales - scale) / scale)[:, None], shares[:, 1:]], axis=1, dtype=dtype)
        return cls(scale, np.broadcast_to(np.asarray(rescales, dtype), scale.shape), shares, image_scales is not None)

    def rows(self, start: int, stop: int) -> "Guidance":
        """Rows start .. stop - 1."""
        return jax.tree.map(lambda a: a[start:stop], self)


def classifier_free(
    model: Model,
    scale: jax.Array | float,
    rescale: jax.Array | float | None = None,
    shares: jax.Array | None = None,
    regions: jax.Array | None = None,
    shown: bool = False,
) -> Model:
    """The guided model, for b images, of a `model` that takes 2 b: first without the prompt, then with it.

    Args:
      model: (x [2 b, ...], t) -> raw [2 b, ...]; its own conditioning stands in the order of `pair`.
      scale: s of equation 1, a scalar or one per image [b]; 1 is no guidance.
      rescale: phi of equation 2, 0 to 1, a scalar or one per image [b]; None leaves (2) out.
      shares: w of equation 4, [k, b]; `model` then takes (1 + k) b, the k prompts after each other. None is one
        prompt of share 1.
      regions: [k, b, h, w, 1], where each of them counts; None is everywhere.
      shown: whether the first of the k is i of equation 5; (2) then takes its spread from the last, as diffusers does.

    Returns:
      (x [b, ...], t scalar or [b]) -> raw [b, ...]. t reaches `model` as it came, repeated if it is [b].
    """
    parts = 2 if shares is None else 1 + len(shares)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.asarray(t)
        raw = model(jnp.concatenate([x] * parts), jnp.concatenate([t] * parts) if t.ndim else t)
        uncond, *conds = jnp.split(raw, parts)
        cond = conds[0] if shares is None else _mixed(uncond, conds, shares, regions)
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
    s = beside(jnp.asarray(scale, cond.dtype), cond)
    raw = cond + (s - 1) * (cond - uncond)
    if rescale is None:
        return raw
    phi = jnp.asarray(rescale, cond.dtype)
    return lax.cond(jnp.any(phi > 0), _rescaled, lambda raw, cond, phi: raw, raw, cond if like is None else like, phi)


def _mixed(uncond: jax.Array, conds: Sequence[jax.Array], shares: jax.Array, regions: jax.Array | None) -> jax.Array:
    """Equation 4; exactly c_1 where it alone has a share, of 1."""
    if regions is not None:
        shares = beside(shares, regions) * regions
    rest = beside(1 - shares.sum(0), uncond) * uncond
    return sum((beside(w, c) * c for w, c in zip(shares, conds, strict=True)), rest)


def _rescaled(raw: jax.Array, cond: jax.Array, phi: jax.Array) -> jax.Array:
    """Equation 2; standard deviations over all but the first axis. An output without any spread stays as it is."""
    over = tuple(range(1, raw.ndim))
    spread = jnp.var(raw, axis=over)
    ratio = jnp.sqrt(jnp.var(cond, axis=over) / jnp.where(spread > 0, spread, 1))
    return raw * beside(1 + phi * (jnp.where(spread > 0, ratio, 1) - 1), raw)


def pair(uncond: Any, cond: Any) -> Any:
    """The doubled batch's conditioning: leaves [b, ...] of two like trees become [2 b, ...], uncond first."""
    return jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
