"""What a checkpoint's feature_extractor/preprocessor_config.json does to a picture before an encoder sees it.

    resize -> cut out the middle -> to [0, 1] -> (x - mean) / std

as transformers' CLIPImageProcessor and DPTImageProcessor have it, in the form that resizes with PIL (their published
behaviour; the newer form that resizes with torchvision differs by a grey level here and there).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.json_fields import ConfigError, Fields

WHERE = "feature_extractor/preprocessor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Processor:
    """A picture's way into an encoder.

    Attributes:
      size: (height, width) to resize to, or (shortest side,); None leaves it. resample: PIL's number of the filter.
      crop: (height, width) to cut out of the middle, or None. keep_aspect, multiple: of resizing to (height, width).
      scale: what 8-bit values are multiplied by. mean, std: by channel.
    """

    size: tuple[int, ...] | None
    resample: int
    crop: tuple[int, int] | None
    keep_aspect: bool
    multiple: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], usual: str = "CLIP") -> "Processor":
        """Reads preprocessor_config.json of either kind; what is missing has its kind's default. Raises ConfigError.

        usual: "CLIP" or "DPT", the kind of one that does not say.
        """
        read = Fields(config, WHERE)
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or usual)
        depth = kind.startswith("DPT")
        side, mean, std = (384, (0.5,) * 3, (0.5,) * 3) if depth else (224, CLIP_MEAN, CLIP_STD)
        return cls(
            size=_sides(read, "size", side, square=depth) if read.flag("do_resize", True) else None,
            resample=read.whole("resample", 3, least=0, most=5),
            crop=_crop(read, side) if read.flag("do_center_crop", not depth) else None,
            keep_aspect=read.flag("keep_aspect_ratio", False),
            multiple=read.whole("ensure_multiple_of", 1, most=256),
            scale=read.number("rescale_factor", 1 / 255, 0.0, 1.0) if read.flag("do_rescale", True) else 1.0,
            mean=_channels(read, "image_mean", mean) if read.flag("do_normalize", True) else (0.0,) * 3,
            std=_channels(read, "image_std", std) if read.flag("do_normalize", True) else (1.0,) * 3,
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB picture -> float32 `H W 3`, normalised."""
        if self.size is not None:
            width, height = self._resized(image.size)
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _middle(pixels, *self.crop)
        scaled = pixels.astype(np.float64) * self.scale
        return ((scaled - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) to resize a picture of that size to."""
        assert self.size is not None
        width, height = size
        if len(self.size) == 1:
            shortest, longest = self.size[0], int(self.size[0] * max(size) / min(size))
            return (shortest, longest) if width <= height else (longest, shortest)
        down, across = self.size[0] / height, self.size[1] / width
        if self.keep_aspect:  # by as little as possible
            down = across = across if abs(1 - across) < abs(1 - down) else down
        return self._multiple(across * width), self._multiple(down * height)

    def _multiple(self, length: float) -> int:
        return max(round(length / self.multiple) * self.multiple, self.multiple)


def _sides(read: Fields, key: str, usual: int, square: bool) -> tuple[int, ...]:
    """A number, {"shortest_edge"} or {"height", "width"}. A number alone is a square, or the shortest side."""
    found = read.values.get(key)
    if isinstance(found, Mapping):
        names = ("shortest_edge",) if "shortest_edge" in found else ("height", "width")
        sides = Fields(found, f"{WHERE}: {key}")
        sides.require(*names)
        return tuple(sides.whole(name, most=4096) for name in names)
    side = read.whole(key, usual, most=4096)
    return (side, side) if square else (side,)


def _crop(read: Fields, usual: int) -> tuple[int, int]:
    sides = _sides(read, "crop_size", usual, square=True)
    return sides[0], sides[-1]


def _channels(read: Fields, key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    found = tuple(read.list(key, (int, float))) or usual
    if len(found) != 3 or not np.isfinite(found).all() or (key == "image_std" and min(found) <= 0):
        raise ConfigError(f"{WHERE}: {key} must be three numbers, one for each colour, not {found}")
    return found


def _middle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of `H W 3`, with zeros around where the picture is smaller."""
    short = [max(0, wanted - has) for wanted, has in zip((height, width), pixels.shape[:2], strict=True)]
    if any(short):  # rounded as the reference rounds it
        above, left = -(-short[0] // 2), -(-short[1] // 2)
        pixels = np.pad(pixels, ((above, short[0] - above), (left, short[1] - left), (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
