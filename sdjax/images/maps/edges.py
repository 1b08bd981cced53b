"""Edges and scribbles: white lines on black.

    canny           Canny's detector on the three channels, an edge where any has one                               (1)
    scribble        (1), then as hands draw: G3 of the lines, white where that is above 4                            (2)
    scribble_hed    soft edges that a network found: only crests along a direction (3), cut at 127, then (2)
    scribble_xdog   2 (255 - u) > threshold, u = 255 - min over channels of (G5 - G.5), as uint8                     (4)

G<s> is a Gaussian of standard deviation s. A crest (3) is a pixel of G3 that no neighbour exceeds along a row, a column
or one of the diagonals. CN trained its scribble net on (2) of HED's edges; where no HED is at hand, Canny's lines take
their place here: they are as thin as crests are. In W's (4) the product is of 8 bits and runs over where a pixel is
darker by 128 to 144, which leaves holes; here it does not.

Sources: (1) CN, X, W with thresholds 100 and 200; (2), (3) `nms` and `scribble_hed` of CN, X, W; (4) W's
`scribble_xdog`, threshold 32.
"""

from types import ModuleType

import numpy as np
from PIL import Image

from sdjax.diffusion.bounds import check_number
from sdjax.images.maps.pictures import detected, opencv, picture, pixels
from sdjax.images.read import ImageLike

MOST_GRADIENT = 65_535  # 8 bits of three channels have gradients up to 2,040
HAND, VISIBLE, CREST = 3.0, 4, 127  # of (2) and (3)


def canny(image: ImageLike, low: float = 100, high: float = 200, detect_resolution: int | None = None) -> Image.Image:
    """Canny's edges: `cv2.Canny(rgb, low, high)`, aperture 3, gradients |dx| + |dy|.

    low, high: of the gradient: above `high` is an edge, above `low` is one where it goes on from such.
    detect_resolution: the shorter side to look at, see `pictures`; default: the picture as it is.

    Raises ValueError, FileNotFoundError.
    """
    return picture(_canny(image, low, high, detect_resolution, "canny"))


def scribble(
    image: ImageLike, low: float = 100, high: float = 200, detect_resolution: int | None = None
) -> Image.Image:
    """Canny's edges as if drawn by hand, equation (2). Arguments and errors as `canny`."""
    lines = _canny(image, low, high, detect_resolution, "scribble")
    return picture(_drawn(lines, opencv("scribble")))


def scribble_hed(image: ImageLike) -> Image.Image:
    """Soft edges, white on black, as HED or PiDiNet give them, as if drawn by hand: equations (3) and (2).

    image: that map, and not the picture. Raises ValueError, FileNotFoundError.
    """
    cv2, soft = opencv("scribble_hed"), pixels(image).max(axis=2)
    return picture(_drawn(_crests(soft, cv2), cv2))


def scribble_xdog(image: ImageLike, threshold: float = 32, detect_resolution: int | None = None) -> Image.Image:
    """Where a picture is darker than around, in any channel not by much: equation (4).

    threshold: 1 (much is drawn) to 64 (little). detect_resolution: as of `canny`.
    Raises ValueError, FileNotFoundError.
    """
    check_number("threshold", threshold, 0, 510)
    found = detected(image, detect_resolution, "scribble_xdog").astype(np.float32)
    cv2 = opencv("scribble_xdog")
    fine, coarse = (cv2.GaussianBlur(found, (0, 0), sigma) for sigma in (0.5, 5.0))
    light = np.clip(255 - np.min(coarse - fine, axis=2), 0, 255).astype(np.uint8)
    return picture(np.where(2 * (255 - light.astype(np.int32)) > threshold, 255, 0).astype(np.uint8))


def _canny(image: ImageLike, low: float, high: float, resolution: int | None, name: str) -> np.ndarray:
    for side, value in (("low", low), ("high", high)):
        check_number(side, value, 0, MOST_GRADIENT)
    if low > high:
        raise ValueError(f"low={low:g} is above high={high:g}; OpenCV would swap them without a word")
    return opencv(name).Canny(detected(image, resolution, name), low, high)


def _crests(soft: np.ndarray, cv2: ModuleType) -> np.ndarray:
    """Equation (3): uint8 `H W` -> 255 on crests above 127, 0 elsewhere."""
    smooth = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), HAND)
    row, diagonal = np.zeros((3, 3), np.uint8), np.eye(3, dtype=np.uint8)
    row[1] = 1
    crest = np.zeros(soft.shape, bool)
    for line in (row, row.T, diagonal, diagonal[::-1]):
        crest |= cv2.dilate(smooth, np.ascontiguousarray(line)) == smooth
    return np.where(crest & (smooth > CREST), 255, 0).astype(np.uint8)


def _drawn(lines: np.ndarray, cv2: ModuleType) -> np.ndarray:
    """Equation (2): thin lines as wide ones."""
    return np.where(cv2.GaussianBlur(lines, (0, 0), HAND) > VISIBLE, 255, 0).astype(np.uint8)
