"""Pictures on their way into a map and out of it, and the library that most maps are made by.

The size that edges are looked for at matters: the same filter finds other edges in a larger picture. The training sets
were made at 512 (X and CN's `resize_image`):

    k = resolution / min(H, W);  both sides to round(side k / 64) 64;  Lanczos (8 x 8) if k > 1, else means of areas (1)

Without a resolution a picture is looked at as it is.
"""

from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.limits import MOST_SIDE
from sdjax.diffusion.bounds import check_whole
from sdjax.images import read

LEAST_RESOLUTION, MOST_RESOLUTION = 64, 8192


def opencv(name: str) -> ModuleType:
    """OpenCV, for the map of that name. Raises ValueError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"the map {name!r} is made by OpenCV, which cannot be imported ({error}): pip install 'sdjax[control]'"
        ) from None
    return cv2


def pixels(image: read.ImageLike, name: str = "image") -> np.ndarray:
    """A picture as uint8 `H W 3`, as `read.read_image` reads it.

    Raises ValueError, FileNotFoundError; `name` is the argument that the message names.
    """
    found = read.read_image(image, name)
    if max(found.size) > MOST_SIDE:  # OpenCV counts to 32,767
        raise ValueError(
            f"{name} is {found.width} x {found.height} pixels, longer than {MOST_SIDE} on a side; make it smaller first"
        )
    return np.asarray(found)


def detected(image: read.ImageLike, resolution: int | None, name: str) -> np.ndarray:
    """A picture as uint8 `H W 3` at the size to look for edges at, equation (1); as it is where that is None.

    name: the map's. Raises ValueError, FileNotFoundError.
    """
    found = pixels(image)
    return found if resolution is None else resized(found, resolution, name)


def resized(array: np.ndarray, resolution: int, name: str) -> np.ndarray:
    """Equation (1) for uint8 `H W 3`. Raises ValueError."""
    check_whole("detect_resolution", resolution, LEAST_RESOLUTION, MOST_RESOLUTION)
    cv2, sides = opencv(name), array.shape[:2]
    k = float(resolution) / min(sides)
    height, width = (int(np.round(side * k / 64)) * 64 for side in sides)
    if max(height, width) > MOST_SIDE:
        raise ValueError(
            f"detect_resolution={resolution} is of the shorter side, and makes {width} x {height} of this picture of "
            f"{sides[1]} x {sides[0]}; give a smaller one, or a part of the picture"
        )
    how = cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA
    return cv2.resize(array, (width, height), interpolation=how)


def picture(array: np.ndarray) -> Image.Image:
    """uint8 `H W` or `H W 3` as an RGB picture."""
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def check_size(size: Any, name: str = "size") -> tuple[int, int]:
    """(height, width) as two ints. Raises ValueError where they are none, or of too many pixels."""
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"{name} must be (height, width) in pixels, as (512, 768)")
    height, width = (check_whole(f"{name}'s {side}", one, 1, MOST_SIDE) for side, one in zip(SIDES, size, strict=True))
    if height * width > read.MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels; at most {read.MAX_PIXELS:,} are drawn")
    return height, width


SIDES = ("height", "width")
