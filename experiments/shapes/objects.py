"""What a picture of the shapes world shows: its background, and its objects with colour, outline and place.

1. **Background**: the named colour nearest to the median m of the picture's border.
2. **Objects**: a pixel p belongs to an object where |p - m| is over NOISE and over half of its largest value
   within two pixels: half way up the edge is where a blurred or anti-aliased outline passes, whatever its
   contrast. The connected parts (4 neighbours) of at least SPECK of the picture are the objects.
3. **Colour**: the named colour nearest to the median of the object's inner pixels.
4. **Shape**: the ideal outline of largest intersection over union with the object in its bounding box.

Named colours and outlines are the world's own; those that only adapters know count where they are asked for, so that
they change no other verdict.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.shapes.outlines import NEW_SHAPES, SHAPES, shape_mask
from experiments.shapes.world import COLOURS, NEW_COLOURS

NOISE = 30.0
"""RGB distance under which two pixels count as one colour; the nearest two named colours are 78 apart."""
FLAT = 45.0
"""RGB distance from its median within which a flat area's pixels lie."""
SPECK = 0.002
"""Parts under this fraction of the picture's area are no objects; the smallest object has ten times that."""


@dataclass(frozen=True)
class Found:
    """One object found in a picture; lengths are fractions of the picture's width, y points down."""

    colour: str
    shape: str
    overlap: float
    """Intersection over union with the ideal outline of `shape`, in [0, 1]."""
    x: float
    y: float
    width: float
    height: float
    even: bool
    """Whether its inner pixels are of one colour."""


@dataclass(frozen=True)
class Background:
    """The colour around the objects; `even` says whether the picture's border is of one colour."""

    colour: str
    even: bool


def nearest_colour(rgb: Sequence[float] | np.ndarray, new: Collection[str] = ()) -> str:
    """The named colour of least Euclidean distance to rgb [3] in [0, 255]; of NEW_COLOURS, those in `new` count."""
    known = COLOURS | {name: colour for name, colour in NEW_COLOURS.items() if name in new}
    palette = np.array(list(known.values()), np.float32)
    return list(known)[int(((palette - np.asarray(rgb, np.float32)) ** 2).sum(1).argmin())]


def label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected parts (4 neighbours) of a bool mask [h, w]: labels int [h, w], 0 outside, and their number.

    Union-find over the runs of each row, so the Python loop counts runs, not pixels.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    begin, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        i, j = first[row - 1], first[row]
        while i < first[row] and j < first[row + 1]:
            if begin[i] < end[j] and begin[j] < end[i]:
                parent[root(j)] = root(i)
            if end[i] < end[j]:
                i += 1
            else:
                j += 1
    roots = np.array([root(i) for i in range(len(parent))], np.int64)
    names, number = np.unique(roots, return_inverse=True)
    flat = np.zeros(mask.size, np.int64)
    flat[mask.ravel()] = np.repeat(number + 1, ends - starts)
    return flat.reshape(height, width), len(names)


def _local_largest(values: np.ndarray, reach: int) -> np.ndarray:
    """The largest value within `reach` pixels in both directions: [h, w] of [h, w]."""
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        wide = np.pad(values, pad, mode="edge")
        parts = [np.take(wide, np.arange(values.shape[axis]) + k, axis) for k in range(2 * reach + 1)]
        values = np.maximum.reduce(parts)
    return values


def inner(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask all of whose 4 neighbours are of it; the mask itself where that leaves none."""
    wide = np.pad(mask, 1)
    inner = mask & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]
    return inner if inner.any() else mask


def near(pixels: np.ndarray, colour: np.ndarray) -> float:
    """The part of pixels [n, 3] within FLAT of a colour [3]."""
    return float((np.linalg.norm(pixels - colour, axis=1) <= FLAT).mean())


def _measure(image: np.ndarray, mask: np.ndarray, new: Collection[str]) -> Found:
    """The object of a mask bool [s, s] with pixels in it, in an image float32 [s, s, 3]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    mask, pixels = mask[top:bottom, left:right], image[top:bottom, left:right]
    core = pixels[inner(mask)]
    median = np.median(core, axis=0)
    known = (*SHAPES, *(shape for shape in NEW_SHAPES if shape in new))
    ideals = {shape: shape_mask(shape, mask.shape) > 0.5 for shape in known}
    overlaps = {shape: float((mask & ideal).sum() / (mask | ideal).sum()) for shape, ideal in ideals.items()}
    shape = max(overlaps, key=lambda name: overlaps[name])
    size = image.shape[0]
    return Found(
        colour=nearest_colour(median, new),
        shape=shape,
        overlap=overlaps[shape],
        x=float(left + right) / 2 / size,
        y=float(top + bottom) / 2 / size,
        width=float(right - left) / size,
        height=float(bottom - top) / size,
        even=near(core, median) >= 0.75,
    )


def find_objects(image: np.ndarray, new: Collection[str] = ()) -> tuple[Background, list[Found]]:
    """What a picture uint8 [s, s, 3] shows: its background and its objects, the largest first.

    new: the names of NEW_COLOURS and NEW_SHAPES that count beside the world's own.

    Raises:
        ValueError: the picture is of another type or shape.
    """
    median, even, masks = object_masks(image)
    pixels = image.astype(np.float32)
    return Background(nearest_colour(median, new), even), [_measure(pixels, mask, new) for mask in masks]


def object_masks(image: np.ndarray) -> tuple[np.ndarray, bool, list[np.ndarray]]:
    """Of a picture uint8 [s, s, 3] its border's median colour [3], whether that is even, and each object's pixels.

    Those are bool [s, s], of the largest object first. Raises ValueError as `find_objects`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"a picture is uint8 [s, s, 3]; this one is {image.dtype} {list(image.shape)}.")
    pixels = image.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    median = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - median, axis=2)
    labels, number = label((distance > NOISE) & (distance > _local_largest(distance, 2) / 2))
    areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    chosen = [k for k in np.argsort(-areas) if areas[k] >= SPECK * distance.size]
    return median, near(border, median) >= 0.9, [labels == k + 1 for k in chosen]
