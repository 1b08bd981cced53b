"""Depth maps: near is white, whatever the numbers were.

    midas   inverse depth d, larger is nearer:  255 (d - min) / (max - min)                                         (1)
    zoe     distance d in metres:  255 (1 - (d - p2) / (p85 - p2))^gamma, p2 and p85 its percentiles                 (2)
    leres   distance d:  255 - 255 (d - min) / (max - min), by way of 16 bits, which round                           (3)

(1) is what CN's and T's depth nets were trained on, and what DPT gives (`sd.estimate_depth`). Sources: X `midas`, `zoe`
(gamma 2.2 is its `gamma_corrected`), `leres`. (1) and (2) drop what is after the point, as they do. Where nothing is
nearer than anything else the map is black.
"""

from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.diffusion.bounds import check_number
from sdjax.images.depth import read_depth
from sdjax.images.maps.pictures import check_size, picture

NEAR, FAR = 2, 85  # percentiles of (2)
DEEPEST = 65_535  # of 16 bits


def depth(
    values: Any, convention: str = "midas", gamma: float = 1.0, size: tuple[int, int] | None = None
) -> Image.Image:
    """A depth map from an estimate.

    values: numbers `H W`, or a picture of 8 or 16 bits. convention: what they are, "midas" (larger is nearer), "zoe" or
    "leres" (larger is farther). gamma: of "zoe", above 1 is darker. size: (height, width) to bring it to first.

    Raises ValueError, FileNotFoundError.
    """
    if convention not in CONVENTIONS:
        raise ValueError(unknown(f"convention={convention!r} is unknown", convention, CONVENTIONS))
    if check_number("gamma", gamma, 0.01, 100) != 1 and convention != "zoe":
        raise ValueError(f'gamma={gamma:g} is for convention="zoe"; {convention} has none')
    found = sized(read_depth(values), size)
    if found.max() == found.min():
        return picture(np.zeros(found.shape, np.uint8))
    return picture(CONVENTIONS[convention](found, gamma))


def sized(values: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """float32 `H W` -> `h w`, bilinear; as it is where that is None. Raises ValueError."""
    if size is None:
        return values
    height, width = check_size(size)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def _midas(values: np.ndarray, gamma: float) -> np.ndarray:
    return ((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


def _zoe(values: np.ndarray, gamma: float) -> np.ndarray:
    near, far = (np.percentile(values, share) for share in (NEAR, FAR))
    if near == far:  # all but a few are as far
        return np.where(values <= near, 255, 0).astype(np.uint8)
    light = np.clip(1 - (values - near) / (far - near), 0, 1)
    return (light**gamma * 255).astype(np.uint8)


def _leres(values: np.ndarray, gamma: float) -> np.ndarray:
    far = ((values - values.min()) / np.ptp(values) * DEEPEST).astype(np.uint16)
    return 255 - np.rint(far * (255 / DEEPEST)).astype(np.uint8)


CONVENTIONS = {"midas": _midas, "zoe": _zoe, "leres": _leres}
