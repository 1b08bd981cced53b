"""The outlines of the shapes world, and how much of each pixel they cover.

Let c be the outline's indicator on the unit box (x to the right, y down) and

    (1)  I(x, y) = area of the outline in [0, x] x [0, y].

The part of a pixel [x0, x1] x [y0, y1] that the outline covers is then

    (2)  (I(x1, y1) - I(x0, y1) - I(x1, y0) + I(x0, y0)) / ((x1 - x0) (y1 - y0)),

four look-ups in one table, whatever the size and the sub-pixel place of the box (summed-area tables: Crow,
"Summed-area tables for texture mapping", SIGGRAPH 1984). I is tabulated once per shape on a grid of 1,024 x
1,024 cells, so a pixel's edge is off by at most half a cell.

The heart is the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t. Star and heart are
stretched by a few percent to fill their square box, the hexagon by 15 %, as every other shape does by itself.
"""

import functools

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
NEW_SHAPES = ("hexagon",)
"""Outlines that no caption of the model's training names: what an adapter may teach it."""
_GRID = 1024


def _polygon(points: np.ndarray) -> np.ndarray:
    """Cells of the grid whose centres lie inside a polygon [n, 2], stretched to fill the box (even-odd)."""
    points = (points - points.min(0)) / np.ptp(points, axis=0)
    centres = (np.arange(_GRID) + 0.5) / _GRID
    inside = np.zeros((_GRID, _GRID), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        rows = np.flatnonzero((centres >= min(y0, y1)) & (centres < max(y0, y1)))
        if rows.size:
            crossing = x0 + (centres[rows] - y0) / (y1 - y0) * (x1 - x0)
            inside[rows] ^= centres[None, :] < crossing[:, None]
    return inside


def _outline(shape: str) -> np.ndarray:
    """Cells of the grid inside the ideal outline, filling the unit box: bool [grid, grid], row 0 on top."""
    x = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
    dx, dy = np.abs(x)[None, :], np.abs(x)[:, None]
    t = np.arange(1440) * (2 * np.pi / 1440)
    tenth = np.arange(10) * (np.pi / 5)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    makers = {
        "circle": lambda: np.hypot(dx, dy) <= 1,
        "square": lambda: np.ones((_GRID, _GRID), bool),
        "triangle": lambda: _polygon(np.array([(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)])),
        "diamond": lambda: dx + dy <= 1,
        "star": lambda: _polygon(np.stack([radius * np.sin(tenth), -radius * np.cos(tenth)], 1)),
        "heart": lambda: _polygon(
            np.stack(
                [
                    16 * np.sin(t) ** 3,
                    -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)),
                ],
                1,
            )
        ),
        "cross": lambda: np.minimum(dx, dy) <= 1 / 3,
        "ring": lambda: (np.hypot(dx, dy) <= 1) & (np.hypot(dx, dy) >= 0.55),
        "hexagon": lambda: _polygon(np.array([(1, 0), (3, 0), (4, 1), (3, 2), (1, 2), (0, 1)])),
    }
    return makers[shape]()


@functools.cache
def _area_table(shape: str) -> np.ndarray:
    """Equation (1) in cells of the grid: int32 [grid + 1, grid + 1]."""
    table = np.zeros((_GRID + 1, _GRID + 1), np.int32)
    table[1:, 1:] = _outline(shape).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    return table


def coverage(shape: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Equation (2): coverage of the pixels between given edges, float32 [h, w] in [0, 1].

    Args:
        shape: one of SHAPES or NEW_SHAPES.
        rows: y of the h + 1 edges of the pixel rows, rising; the box is [0, 1], edges may lie outside it.
        columns: x of the w + 1 edges of the pixel columns likewise.
    """
    y, x = np.rint(rows * _GRID).astype(np.int64), np.rint(columns * _GRID).astype(np.int64)
    corners = _area_table(shape)[y.clip(0, _GRID)][:, x.clip(0, _GRID)]
    covered = np.diff(np.diff(corners, axis=0), axis=1)
    return covered.astype(np.float32) / (np.diff(y)[:, None] * np.diff(x)).astype(np.float32)


def shape_mask(shape: str, pixels: int | tuple[int, int]) -> np.ndarray:
    """Coverage of the ideal outline filling its box: float32 [h, w] in [0, 1]; one int means h = w.

    Raises:
        ValueError: an unknown shape, or a box without pixels.
    """
    if shape not in (*SHAPES, *NEW_SHAPES):
        raise ValueError(f"{shape!r} is no shape of the shapes world; there are {', '.join((*SHAPES, *NEW_SHAPES))}.")
    height, width = (pixels, pixels) if isinstance(pixels, int) else pixels
    if min(height, width) < 1:
        raise ValueError(f"a box of {height} x {width} pixels; both must be at least 1.")
    return coverage(shape, np.arange(height + 1) / height, np.arange(width + 1) / width)
