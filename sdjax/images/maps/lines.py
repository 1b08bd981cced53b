"""Drawn lines and straight ones: white on black.

    lineart_standard   d = min over channels of (G6(u) - u), clipped to 0 .. 255;
                       127 d / max(16, the median of those d that are above 8)                                       (1)
    lines              straight segments, one pixel wide                                                            (2)

Sources: (1) X's and W's `lineart_standard`. (2) has the look of MLSD's maps (CN, X: lines of one pixel, white), but no
network: the segments are LSD's (von Gioi et al., LSD: a fast line segment detector, 2010), which is OpenCV's. It finds
more and shorter ones than MLSD, hence `shortest`.
"""

import numpy as np
from PIL import Image

from sdjax.core.limits import MOST_SIDE
from sdjax.diffusion.bounds import check_number
from sdjax.images.maps.pictures import detected, opencv, picture
from sdjax.images.read import ImageLike

SIGMA, LEAST, FAINT = 6.0, 16, 8  # of (1)


def lineart_standard(image: ImageLike, detect_resolution: int | None = None) -> Image.Image:
    """What is darker than its surroundings, as soft white lines on black: equation (1).

    detect_resolution: the shorter side to look at, see `pictures`; default: the picture as it is.
    Raises ValueError, FileNotFoundError.
    """
    found = detected(image, detect_resolution, "lineart_standard").astype(np.float32)
    blurred = opencv("lineart_standard").GaussianBlur(found, (0, 0), SIGMA)
    dark = np.clip(np.min(blurred - found, axis=2), 0, 255)
    seen = dark[dark > FAINT]
    usual = max(LEAST, float(np.median(seen))) if seen.size else LEAST
    return picture(np.clip(dark / usual * 127, 0, 255).astype(np.uint8))


def lines(image: ImageLike, shortest: float = 16, detect_resolution: int | None = None) -> Image.Image:
    """Straight segments as LSD finds them in the grey picture, equation (2).

    shortest: pixels that a segment must have. detect_resolution: as of `lineart_standard`.
    Raises ValueError, FileNotFoundError.
    """
    check_number("shortest", shortest, 0, MOST_SIDE)
    cv2 = opencv("lines")
    found = detected(image, detect_resolution, "lines")
    segments = cv2.createLineSegmentDetector().detect(cv2.cvtColor(found, cv2.COLOR_RGB2GRAY))[0]
    canvas = np.zeros(found.shape[:2], np.uint8)
    for x0, y0, x1, y1 in segments.reshape(-1, 4) if segments is not None else ():
        if np.hypot(x1 - x0, y1 - y0) >= shortest:
            cv2.line(canvas, (int(x0), int(y0)), (int(x1), int(y1)), 255, 1)
    return picture(canvas)
