"""Buckets: the few sizes that pictures of all shapes are brought to, so that a batch has one.

A picture goes to the bucket whose ratio of sides is most like its own,

    argmin_k |log(W_k / H_k) - log(w / h)|,                                                                 (1)

in which a picture twice as wide as the bucket is as far off as one twice as high; the difference of the ratios
themselves, as NovelAI and kohya have it, favours landscapes. Of equal ones the largest is taken. It is then scaled to
cover the bucket, and what sticks out is cut off (`crops`).

Sizes are (height, width) here; the sources below count width first. A compiled step per size: see how many are used.

  NovelAI   https://github.com/NovelAI/novelai-aspect-ratio-bucketing (`gen_buckets`)
  kohya     https://github.com/kohya-ss/sd-scripts library/model_util.py (`make_bucket_resolutions`)
  SDXL      Podell et al. 2023 (arXiv:2307.01952), appendix I: 40 sizes near a megapixel
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sdjax.core.limits import MOST_SIDE

Size = tuple[int, int]  # height, width, in pixels

# By width the least and the most height, in steps of 64.
_SDXL = {
    512: (1856, 2048), 576: (1664, 1792), 640: (1536, 1600), 704: (1344, 1472), 768: (1280, 1344), 832: (1152, 1216),
    896: (1088, 1152), 960: (1024, 1088), 1024: (960, 1024), 1088: (896, 960), 1152: (832, 896), 1216: (832, 832),
    1280: (768, 768), 1344: (768, 768), 1408: (704, 704), 1472: (704, 704), 1536: (640, 640), 1600: (640, 640),
    1664: (576, 576), 1728: (576, 576), 1792: (576, 576), 1856: (512, 512), 1920: (512, 512), 1984: (512, 512),
    2048: (512, 512),
}  # fmt: skip


@dataclass(frozen=True)
class Buckets:
    """Sizes (height, width) in pixels, sorted. Raises ValueError for none, and for one that is none."""

    sizes: tuple[Size, ...]

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("there are no buckets; give at least one size (height, width)")
        for size in self.sizes:
            if len(size) != 2 or not all(isinstance(side, int) and 0 < side <= MOST_SIDE for side in size):
                raise ValueError(f"a bucket is (height, width) in whole pixels up to {MOST_SIDE}, not {size!r}")
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))

    def of(self, height: int, width: int) -> Size:
        """The bucket of a picture, by equation 1."""
        return _nearest(self.sizes, height, width)

    def check(self, multiple: int) -> None:
        """Raises ValueError for a side that is no multiple of what the VAE shrinks by."""
        for height, width in self.sizes:
            if height % multiple or width % multiple:
                raise ValueError(f"the bucket {width} x {height} has a side that is no multiple of {multiple}")


def square(side: int) -> Buckets:
    """One bucket for all."""
    return Buckets(((side, side),))


def novelai(area: int = 512 * 768, least: int = 256, most: int = 1024, step: int = 64) -> Buckets:
    """For each width the largest height within `area`, the same with the sides changed over, and 512 x 512."""
    sides = range(least, most + 1, step)
    pairs = [(side, high) for side in sides if (high := min(most, area // side // step * step)) >= least]
    return Buckets(tuple({(512, 512), *_mirrored(pairs)}))


def kohya(side: int, least: int = 256, most: int = 2048, step: int = 64) -> Buckets:
    """For each width the largest height such that the area is at most side * side, with its mirror; and the square.

    most: of a side; kohya's own default of 1024 leaves nothing above 1024 for the SDXL that is trained with it.
    """
    around = side // step * step
    pairs = [(wide, min(most, side * side // wide // step * step)) for wide in range(least, most + 1, step)]
    return Buckets(tuple({(around, around), *_mirrored(pair for pair in pairs if pair[1] >= least)}))


def sdxl() -> Buckets:
    """The 40 sizes of SDXL's own training; not symmetric."""
    spans = ((width, range(low, high + 1, 64)) for width, (low, high) in _SDXL.items())
    return Buckets(tuple((height, width) for width, heights in spans for height in heights))


@lru_cache(maxsize=1 << 16)  # a million pictures have few sizes
def _nearest(sizes: tuple[Size, ...], height: int, width: int) -> Size:
    ratio = math.log(width / height)
    return min(sizes, key=lambda size: (round(abs(math.log(size[1] / size[0]) - ratio), 9), -size[0] * size[1]))


def _mirrored(pairs: Iterable[Size]) -> set[Size]:
    return {pair for one in pairs for pair in (one, one[::-1])}
