"""From what a user gives to steer pictures (`control`) to what each network is told of them: checked, along their runs.

    scale[n, b, j] = within[n, b] scale[b] weights[j]                                                       (1)

for the n rows of a plan, b pictures and the j things that a network adds. Where a picture's network acts (`within`)
goes by the conventions of three programs, which count otherwise:
    diffusers   evaluation i of N acts where i/N >= start and (i + 1)/N <= end
    a1111       step i of N acts where start <= i/N <= end (its extension sd-webui-controlnet)
    comfy       a level acts between those of the training steps (1 - start) 999 and (1 - end) 999
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sdjax.adapters.control import ControlAdapter
from sdjax.adapters.image_prompt import ImagePromptAdapter
from sdjax.core import short
from sdjax.core.errors import unknown
from sdjax.core.numbers import is_number
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.progress import Run
from sdjax.model.spec import ModelSpec
from sdjax.nn.conditioning import Kinds
from sdjax.request import checks
from sdjax.request.prompting import TWO_A_STEP

MODES = ("balanced", "guess", "prompt", "control")
SOFT = 0.825  # by which each coarser residual counts more, in A1111's extension
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)  # of a T2I-Adapter, there
RESIDUALS = 13  # of Stable Diffusion 1.x, whose weights the extension gives to all
ALWAYS = (0.0, 1.0)
LARGEST = float(np.finfo(np.float32).max)
Size = tuple[int, int]  # height, width
Mask = dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Steered:
    """One network that steers b pictures.

    Attributes:
      adapter: the network's parameters, and what it is.
      images: what it looks at: float32 `b m H W c`, maps; or of each picture the pictures that it is shown.
      along: float32 [n, b], how strongly it counts in each row; weights: float32 [b, j], of each thing that it adds.
      masks: where it counts, float32 `b l`, by the places l of each level.
      kinds: of a Union's maps. prompt_alone: whether it tells on the prompt's answer alone.
      said: in words, as settings have it, for each picture.
    """

    adapter: ControlAdapter | ImagePromptAdapter
    images: Any
    along: np.ndarray
    weights: np.ndarray
    masks: Mapping[str, np.ndarray]
    kinds: Kinds | None = None
    prompt_alone: bool = False
    said: tuple[str, ...] = ()

    __repr__ = short.fields

    def scale(self, length: int, guided: bool) -> np.ndarray:
        """Equation 1 for a table of `length` rows, float32 `b n j`, for a branch with the prompt or one without."""
        made = np.zeros((self.along.shape[1], length, self.weights.shape[1]), np.float32)
        if guided or not self.prompt_alone:
            made[:, : len(self.along)] = self.along.T[:, :, None] * self.weights[:, None, :]
        return made

    @property
    def idle(self) -> bool:
        """Whether no picture wants it anywhere."""
        return not (self.along.any() and self.weights.any())


# ---------------------------------------------------------------------- how strongly, and where in a run


@dataclass(frozen=True, eq=False)
class Course:
    """A picture's run, as places in it are counted.

    Attributes:
      run: see there. preset: of its program. begun: whether it begins from a picture: places are then counted from
        there, as all three programs do; a run that another one goes on with is counted whole.
    """

    run: Run
    preset: str | None
    begun: bool

    def acting(self, start: float, end: float, spec: ModelSpec) -> np.ndarray:
        """Which rows of the plan lie between two places, float64 [rows - 1]."""
        plan, whole, before = self.run.plan, self.run.whole, self.run.before
        if (start, end) == ALWAYS:
            return np.ones(plan.rows - 1)
        if self.preset == "comfy":
            level, ve = plan.sigma[:-1] / plan.alpha[:-1], _training_levels(spec)
            most, least = _level_at(start, ve), _level_at(end, ve)
            return ((level <= most * (1 + 1e-6)) & (level >= least * (1 - 1e-6))).astype(np.float64)
        total = max(1, whole.evaluations - (before if self.begun else 0))  # a strength of 0 leaves none
        number = np.cumsum(plan.evaluate) - 1.0 + (0 if self.begun else before)  # of each row's evaluation
        if self.preset == "a1111":
            each = 2 if plan.sampler in TWO_A_STEP else 1
            place = np.floor(number / each) / math.ceil(total / each)
            return ((start <= place) & (place <= end)).astype(np.float64)
        return ((number / total >= start) & ((number + 1) / total <= end)).astype(np.float64)


def along(value: Any, start: Any, end: Any, courses: Sequence[Course], spec: ModelSpec, name: str) -> np.ndarray:
    """within times scale of equation 1, float32 [n, b]. Raises ValueError.

    value: a number, a list with one for each picture, or an array [evaluations, b].
    """
    count, rows = len(courses), max(one.run.plan.rows for one in courses)
    made = np.zeros((rows, count), np.float32)
    ranges = zip(_places(start, count, name, "start"), _places(end, count, name, "end"), strict=True)
    table = by_evaluation(value)
    listed = [1.0] if table else value
    scales = [finite(one, name) for one in checks.spread(listed, count, f"{name}: scale")]
    for i, (course, (first, last)) in enumerate(zip(courses, ranges, strict=True)):
        if first > last:
            raise ValueError(f"{name}: start {first:g} comes after end {last:g}; both are places from 0 to 1")
        own = scales[i] * course.acting(first, last, spec)
        made[: len(own), i] = own * (_each_evaluation(value, i, count, course.run.plan, name) if table else 1)
    return made


def by_evaluation(value: Any) -> bool:
    """Whether a scale is said for each evaluation: rows of numbers, one for each picture."""
    return checks.is_list(value) and any(checks.is_list(one) for one in value)


def _training_levels(spec: ModelSpec) -> np.ndarray:
    """sigma / alpha of the levels that a model was trained with, float64 [T]."""
    return np.sqrt((1 - spec.alphas_cumprod) / np.maximum(spec.alphas_cumprod, 1e-12))


def _level_at(place: float, ve: np.ndarray) -> float:
    """The level at a place of a run, between two training levels in the logarithm; as ComfyUI's percent_to_sigma."""
    if place <= 0 or place >= 1:
        return math.inf if place <= 0 else 0.0
    return float(np.exp(np.interp((1 - place) * 999, np.arange(len(ve)), np.log(ve))))


def _places(value: Any, count: int, name: str, which: str) -> list[float]:
    listed = checks.plain(checks.spread(value, count, f"{name}: {which}"), name)
    for one in listed:
        if not is_number(one) or not 0 <= one <= 1:
            raise ValueError(f"{name}: {which} must be a place in the run from 0 to 1, not {short.short(one)}")
    return [float(one) for one in listed]


def finite(value: Any, name: str, what: str = "scale") -> float:
    """A scale, or a weight. Raises ValueError for what is no finite number."""
    value = checks.plain(value, name)
    if not is_number(value) or not abs(value) <= LARGEST:  # so that NaN is refused, and 10**400
        raise ValueError(f"{name}: {what} must be a finite number, not {short.short(value)}")
    return float(value)


def _each_evaluation(value: Any, i: int, count: int, plan: Plan, name: str) -> np.ndarray:
    """The scale of picture i of `count` in each row, from an array [evaluations, b or 1]."""
    array = checks.floats(value, f"{name}: scales")
    if array.shape not in ((plan.evaluations, 1), (plan.evaluations, count)):
        raise ValueError(
            f"{name}: scale as an array must be [evaluations, pictures], and this run has {plan.evaluations} "
            f"evaluations; it is {list(array.shape)}"
        )
    return array[np.maximum(np.cumsum(plan.evaluate) - 1, 0), i if array.shape[1] > 1 else 0]


# ---------------------------------------------------------------------- what of it, and for which answers


def weights_of(adapter: ControlAdapter, mode: str, weights: Any, name: str) -> np.ndarray:
    """The weights of equation 1, float32 [j]: of a mode, or as they are given. Raises ValueError."""
    count = adapter.outputs
    if weights is None and (mode == "balanced" or (mode == "guess" and adapter.pooled)):
        return np.ones(count, np.float32)
    if weights is None and mode == "guess":
        return np.logspace(-1, 0, count).astype(np.float32)
    if weights is None or (isinstance(weights, str) and weights == "soft"):
        if adapter.kind == "t2i":
            return np.array(SOFT_FEATURES, np.float32)
        return (SOFT ** np.arange(RESIDUALS - 1, -1.0, -1))[:count].astype(np.float32)
    if isinstance(weights, str):
        raise ValueError(unknown(f"{name}: weights {short.short(weights)} are unknown", weights, ["soft"]))
    made = [finite(one, name, "each of weights") for one in (weights if checks.is_list(weights) else [weights])]
    if len(made) != count:
        told = f"{count} numbers, one for each of what this net adds"
        raise ValueError(f"{name}: weights must be {told}, not {len(made)}")
    return np.array(made, np.float32)


def mode_of(adapter: ControlAdapter, mode: Any, name: str) -> tuple[str, str | None]:
    """How a net acts, and of a Union the kind of its map. Raises ValueError, with the nearest."""
    said = list(mode) if isinstance(mode, list | tuple) else [] if mode is None else [mode]
    for one in said:
        if not isinstance(one, str):
            raise ValueError(
                f"{name}: mode must be one of {', '.join([*MODES, *adapter.kinds])}, not {short.short(mode)}"
            )
    kinds = [one for one in said if one in adapter.kinds]
    modes = [one for one in said if one not in kinds]
    for one in modes:
        if one not in MODES:
            raise ValueError(unknown(f"{name}: mode {short.short(one)} is unknown", one, [*MODES, *adapter.kinds]))
    if len(modes) > 1 or len(kinds) > 1:
        raise ValueError(f"{name}: mode names {' and '.join(map(repr, said))}, of which one alone can be meant")
    how = modes[0] if modes else "guess" if adapter.pooled else "balanced"
    if how == "guess" and adapter.kind in ("t2i", "lllite"):
        raise ValueError(f"{name}: mode 'guess' is for ControlNets; this one is a {adapter.kind}")
    return how, kinds[0] if kinds else None


# ---------------------------------------------------------------------- where in the picture


def level_sizes(spec: ModelSpec, height: int, width: int) -> list[Size]:
    """Height and width of the latents on each level of the U-Net, finest first."""
    h, w, _ = spec.latent_shape(height, width)
    return [(-(-h // 2**i), -(-w // 2**i)) for i in range(spec.unet.levels)]


def everywhere(levels: Sequence[Size]) -> Mask:
    """The mask of what counts everywhere, by the places of each level."""
    return {h * w: np.ones(h * w, np.float32) for h, w in levels}


def soft_mask(mask: Image.Image, height: int, width: int, levels: Sequence[Size]) -> Mask:
    """A mask of mode L by the places of each level, float32 `l` in [0, 1], by PIL's bilinear filter."""
    sized = {(h, w): mask.resize((w, h), Image.Resampling.BILINEAR) for h, w in levels}
    return {h * w: np.asarray(one, np.float32).reshape(-1) / 255 for (h, w), one in sized.items()}
