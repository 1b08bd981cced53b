"""A picture in other tones: grey, inverted, black and white, or only how light it is.

    grey        (299 R + 587 G + 114 B) / 1000, ITU-R BT.601, as PIL's mode L
    invert      255 - u: black lines on white, as people draw, become the white on black of the nets
    threshold   white where the least of the three channels is above 127
    recolor     255 (l / 255)^gamma, l the L of CIE Lab (luminance) or the V of HSV (intensity)

Sources: W's `invert`, `threshold`, `recolor_luminance` and `recolor_intensity`. Its luminance takes red for blue: W's L
is that of the picture with both exchanged, and ours is the picture's own.
"""

import numpy as np
from PIL import Image, ImageOps

from sdjax.core.errors import unknown
from sdjax.diffusion.bounds import check_number
from sdjax.images.maps.pictures import opencv, picture, pixels
from sdjax.images.read import ImageLike, read_image

BY = ("luminance", "intensity")


def grey(image: ImageLike) -> Image.Image:
    """The picture without its colours. Raises ValueError, FileNotFoundError."""
    return read_image(image).convert("L").convert("RGB")


def invert(image: ImageLike) -> Image.Image:
    """The negative. Raises ValueError, FileNotFoundError."""
    return ImageOps.invert(read_image(image))


def threshold(image: ImageLike, level: float = 127) -> Image.Image:
    """White where every channel is above `level` (0 to 255), black elsewhere. Raises ValueError, FileNotFoundError."""
    check_number("level", level, 0, 255)
    return picture(np.where(pixels(image).min(axis=2) > level, 255, 0).astype(np.uint8))


def recolor(image: ImageLike, by: str = "luminance", gamma: float = 1.0) -> Image.Image:
    """How light the picture is, for nets that colour it.

    by: "luminance" (L of Lab) or "intensity" (V of HSV, the greatest channel). gamma: above 1 is darker.
    Raises ValueError, FileNotFoundError.
    """
    check_number("gamma", gamma, 0.01, 100)
    if by not in BY:
        raise ValueError(unknown(f"by={by!r} is unknown", by, BY))
    found = pixels(image)
    if by == "luminance":
        cv2 = opencv("recolor")
        light = cv2.cvtColor(found, cv2.COLOR_RGB2LAB)[..., 0]
    else:
        light = found.max(axis=2)
    share = light.astype(np.float32) / 255
    return picture(np.clip(share ** np.float32(gamma) * 255, 0, 255).astype(np.uint8))
