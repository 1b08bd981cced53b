"""SDXL's micro-conditioning: the sizes, the crop and the aesthetic score that its U-Nets were trained with.

    base      [original height, width, crop top, left, target height, width]     (Podell et al. 2023, arXiv:2307.01952,
    refiner   [original height, width, crop top, left, aesthetic score]           section 2.2 and appendix B)

Every number becomes a sinusoid that is added to the time embedding. By default a picture is told that it was never
resized nor cropped, and the refiner that it is a good one (6.0) pulled away from a bad one (2.5). What is pulled away
from has the base's numbers unless both its sizes are given, and the refiner's original size: so diffusers' pipelines
have it (pipeline_stable_diffusion_xl.py and ..._xl_img2img.py) for one picture. For several the former deals the two
kinds of numbers out in turns, to texts that do not lie in turns; here every picture has what it has alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.core.errors import unknown
from sdjax.core.limits import MOST_SIDE
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.request.arguments.topic import UNUSUAL, Flag, Topic, argument

Size = Sequence[int] | Sequence[Sequence[int]]
BASE_IDS, REFINER_IDS = 6, 5


_PAIR = Flag("SDXL: two numbers, height,width or top,left, that the U-Net is told.")
_SPAN = (-1000, 1000)  # of a score in a file; `generate` takes 0 to 10


@dataclass(frozen=True, eq=False, repr=False)
class SizeConditioning(Topic):
    """As given; or checked, one entry per picture in each column. None is where nothing was asked.

    Attributes:
      original_size, target_size: (height, width) in pixels; default the picture's own. crop: (top, left), default 0.
      negative_*: the same for the negative prompt. aesthetic_score, negative_aesthetic_score: of the refiner.
    """

    original_size: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    crop: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    target_size: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    negative_original_size: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    negative_crop: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    negative_target_size: Size | None = argument(None, list, told=UNUSUAL, each="picture", flag=_PAIR)
    aesthetic_score: float | Sequence[float] | None = argument(
        None, float, int, span=_SPAN, told=UNUSUAL, each="picture", flag=Flag("SDXL's refiner: 0 to 10; default 6.")
    )
    negative_aesthetic_score: float | Sequence[float] | None = argument(
        None, float, int, span=_SPAN, told=UNUSUAL, each="picture", flag=Flag("SDXL's refiner: 0 to 10; default 2.5.")
    )

    def checked(self, count: int, ids: int) -> "SizeConditioning":
        """For `count` pictures and a U-Net with so many ids (0: not SDXL).

        Raises ValueError for what is malformed and for what this U-Net does not take.
        """
        asked = {name: value for name, value in self.items() if value is not None}
        for name in asked:
            if ids == 0:
                raise ValueError(f"{name} belongs to SDXL; this checkpoint's U-Net does not take it")
            if ids != REFINER_IDS and "score" in name:
                raise ValueError(f"{name} belongs to the SDXL refiner; this is a base model")
            if ids == REFINER_IDS and "target" in name:
                raise ValueError(f"{name} belongs to an SDXL base model; the refiner takes aesthetic_score")
        negative = {"negative_original_size", "negative_target_size"}
        if ids == BASE_IDS and {*asked} & {*negative, "negative_crop"} and not negative <= {*asked}:
            raise ValueError("negative_original_size and negative_target_size go together, and negative_crop with them")
        columns: dict[str, Any] = {
            name: (_scores if "score" in name else _pairs)(value, count, name) for name, value in asked.items()
        }
        return replace(self, **columns)

    def for_base(self) -> "SizeConditioning":
        """Without what only a refiner is told."""
        return replace(self, aesthetic_score=None, negative_aesthetic_score=None)

    def for_refiner(self) -> "SizeConditioning":
        """Without what only a base model is told."""
        return replace(self, target_size=None, negative_target_size=None)

    @classmethod
    def check_names(cls, given: Iterable[str]) -> None:
        """Raises ValueError, with the nearest, for a name that is none of these."""
        known = list(cls.declarations())
        for name in given:
            if name not in known:
                raise ValueError(unknown(f"{name!r} is unknown", name, known))

    def time_ids(self, height: int, width: int, count: int, ids: int) -> tuple[np.ndarray, np.ndarray]:
        """(negative, positive), float32 `b i` each, for `count` pictures of `height` x `width` pixels."""
        own, corner = [(height, width)] * count, [(0, 0)] * count
        original, crop = _column(self.original_size, own), _column(self.crop, corner)
        if ids == REFINER_IDS:
            good = _column(self.aesthetic_score, [6.0] * count)
            bad = _column(self.negative_aesthetic_score, [2.5] * count)
            sizes = _column(self.negative_original_size, original), _column(self.negative_crop, corner)
            return _columns(*sizes, [(one,) for one in bad]), _columns(original, crop, [(one,) for one in good])
        positive = _columns(original, crop, _column(self.target_size, own))
        if self.negative_original_size is None or self.negative_target_size is None:
            return positive, positive
        away = self.negative_original_size, _column(self.negative_crop, corner), self.negative_target_size
        return _columns(*map(list, away)), positive

    def settings(self) -> dict[str, Any]:
        """What was asked for, as `generate` takes it: a list per picture."""
        return {name: [*map(_plain, column)] for name, column in super().settings().items()}


def _column(checked: Any, usual: list[Any]) -> list[Any]:
    """A checked column, or what is usual."""
    return usual if checked is None else checked


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _columns(*columns: Sequence[tuple[float, ...]]) -> np.ndarray:
    return np.array([[number for part in row for number in part] for row in zip(*columns, strict=True)], np.float32)


def _pairs(value: Any, count: int, name: str) -> list[tuple[int, int]]:
    """One pair of whole numbers for all, or a list with one per picture."""
    one = isinstance(value, list | tuple) and len(value) == 2 and not any(isinstance(v, list | tuple) for v in value)
    rows = [value] * count if one else list(value) if isinstance(value, list | tuple) else [value]
    if len(rows) != count:
        raise ValueError(f"{name} has {len(rows)} entries for {count} pictures; give one pair, or one per picture")
    for row in rows:
        whole = isinstance(row, list | tuple) and len(row) == 2 and all(type(v) is int and v >= 0 for v in row)
        if not whole or ("size" in name and 0 in row):
            what = "(height, width) in pixels" if "size" in name else "(top, left) in pixels"
            raise ValueError(f"{name} must be {what}, not {short(row)}")
        if max(row) > MOST_SIDE:
            raise ValueError(f"{name} must be at most {MOST_SIDE:,} pixels, not {short(row)}")
    return [(row[0], row[1]) for row in rows]


def _scores(value: Any, count: int, name: str) -> list[float]:
    rows = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(rows) != count:
        raise ValueError(f"{name} has {len(rows)} entries for {count} pictures; give one, or one per picture")
    for row in rows:
        if not is_number(row) or not 0 <= row <= 10:
            raise ValueError(f"{name} must be a number from 0 to 10, not {short(row)}")
    return [float(row) for row in rows]
