"""Edge maps of pictures of the shapes world, and whether a picture has the outlines that a map draws.

A map is OpenCV's Canny of the picture (thresholds 100 and 200 on the three channels, as the published edge nets were
trained with): white lines of one pixel on black, as RGB in [0, 1]. It says where outlines are, and no colour.

Whether a picture obeys a map is read from pixels alone:

1. **Regions of the map**: outlines, filled: what no way leads to from the picture's edge without crossing a line, each
   connected part by itself, with the lines around it. Canny leaves gaps at sharp tips, so lines are taken three pixels
   wide meanwhile (a closing). A ring's hole is filled too.
2. **Regions of the picture**: its objects (`objects.object_masks`), filled in the same way.
3. **Overlap**: of each region of the map with that of the picture which it overlaps most, intersection over union. A
   line is one pixel wide, and the outline lies somewhere in it: its pixels count in neither.

A picture obeys a map if each of its regions overlaps with at least MIN_OVERLAP.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from experiments.shapes.objects import SPECK, label, object_masks

MIN_OVERLAP = 0.8
"""Least intersection over union of each region of the map with one of the picture."""
LOW, HIGH = 100, 200
"""Canny's thresholds, of the gradient's L1 norm by a Sobel filter of 3 x 3."""


def lines(picture: np.ndarray) -> np.ndarray:
    """The edges of a picture uint8 [h, w, 3]: bool [h, w]."""
    return cv2.Canny(picture, LOW, HIGH) > 0


def as_map(edges: np.ndarray) -> np.ndarray:
    """Edges bool [.., h, w] as a net sees them: float32 [.., h, w, 3], 0 or 1."""
    return np.repeat(edges[..., None].astype(np.float32), 3, axis=-1)


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask bool [h, w] and all that it encloses: what is not connected (4 neighbours) with the picture's edge."""
    labels, _ = label(~np.pad(mask, 1))
    return (labels != labels[0, 0])[1:-1, 1:-1]


def regions(edges: np.ndarray) -> list[np.ndarray]:
    """What the lines bool [h, w] enclose, each connected part with the lines around it: bool [h, w] each."""
    square = np.ones((3, 3), np.uint8)
    wide = cv2.dilate(edges.astype(np.uint8), square) > 0
    labels, number = label(cv2.erode(filled(wide).astype(np.uint8), square) > 0)
    parts = [labels == k + 1 for k in range(number)]
    return [part for part in parts if (part & ~edges).sum() >= SPECK * edges.size]


def overlaps(picture: np.ndarray, edges: np.ndarray) -> list[float]:
    """Of each region of lines bool [h, w] the largest intersection over union with a region of a picture, [0, 1]."""
    found = [filled(mask) for mask in object_masks(picture)[2]]
    return [max((_overlap(region, one, ~edges) for one in found), default=0.0) for region in regions(edges)]


def obeys(found: Sequence[float]) -> bool:
    """Whether the overlaps are those of a picture that obeys its map: there are some, and none is too small."""
    return bool(found) and min(found) >= MIN_OVERLAP


def _overlap(one: np.ndarray, other: np.ndarray, counted: np.ndarray) -> float:
    return float((one & other & counted).sum() / ((one | other) & counted).sum())
