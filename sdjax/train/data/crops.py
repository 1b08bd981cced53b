"""Crops: what of a picture of any size is shown at a bucket's size, and what SDXL is told of it.

A picture h x w is perhaps flipped, then scaled to cover H x W, then cut:

    s = max(H / h, W / w),   h' = max(H, round(s h)),   w' = max(W, round(s w))                             (1)
    the crop is rows top .. top + H and columns left .. left + W of the h' x w' picture                     (2)
    time_ids = (h, w, top, left, H, W)                                                                      (3)

Equation 3 is SDXL's (Podell et al. 2023, arXiv:2307.01952, algorithm 1): the file's size before anything is done to
it, the crop in pixels of the scaled picture, the size of the batch. Because the flip comes first, `left` is counted in
the picture as it is shown. Flipped after the crop it would have to be w' - left - W, which trainers have got wrong.

Scaled by Lanczos, as all of this house's pictures are. PIL widens its kernel where a picture shrinks, so nothing
aliases.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from sdjax.train.data.buckets import Size


@dataclass(frozen=True)
class Crop:
    """One crop of one picture: equations 1 to 3; all sizes are (height, width) in pixels."""

    original: Size
    scaled: Size
    top: int
    left: int
    target: Size
    flip: bool

    @property
    def time_ids(self) -> tuple[int, ...]:
        """Equation 3."""
        return (*self.original, self.top, self.left, *self.target)

    def __call__(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """The crop of a picture, or of a map or mask that lies on it, of whatever size that is."""
        image = ImageOps.mirror(image) if self.flip else image
        if image.size != self.scaled[::-1]:
            image = image.resize(self.scaled[::-1], resample)
        return image.crop((self.left, self.top, self.left + self.target[1], self.top + self.target[0]))


@dataclass(frozen=True)
class Crops:
    """How pictures are cut.

    A picture's crop in its turn t (the t-th time that it comes) is its variant t mod `variants`, or t where that is
    None: a crop of its own each time. Caches of latents need a number, as small as the disk.

    Attributes:
      random: whether the crop is anywhere, or in the middle.
      flip: whether a picture is flipped every second time, begun by a coin; not where left and right have a meaning.
    """

    random: bool = False
    flip: bool = False
    variants: int | None = None

    def __post_init__(self) -> None:
        if self.variants is not None and self.variants < 1:
            raise ValueError(f"crops: variants must be at least 1, or None for a crop of its own, not {self.variants}")

    @property
    def count(self) -> int | None:
        """How many crops of a picture there are; None where each turn has its own."""
        return self.variants if self.random else 2 if self.flip else 1

    def crop(self, original: Size, target: Size, turn: int, seed: tuple[int, ...]) -> Crop:
        """The crop of a picture in one of its turns. seed: of the run and of the picture."""
        variant = turn if self.count is None else turn % self.count
        scaled = cover(original, target)
        room = np.subtract(scaled, target)
        rng = np.random.default_rng((*seed, variant + 1))
        top, left = rng.integers(0, room + 1) if self.random else room // 2
        coin = int(np.random.default_rng((*seed, 0)).integers(2))
        return Crop(original, scaled, int(top), int(left), target, self.flip and (variant + coin) % 2 == 1)


def cover(original: Size, target: Size) -> Size:
    """Equation 1: the size at which a picture just covers the target."""
    scale = max(to / of for to, of in zip(target, original, strict=True))
    high, wide = (max(to, round(scale * of)) for to, of in zip(target, original, strict=True))
    return high, wide
