"""Normal maps from depth: which way a surface looks, as a colour.

    n = (dx, dy, z) / |(dx, dy, z)|,  127.5 n + 127.5 without what is after the point                                (1)

dx and dy are Sobel's derivatives (3 x 3, borders mirrored) of inverse depth, so that n counts left, up and front.

    bae     R, G, B = left, up, front, as ScanNet and NormalBae have it: what control_v11p_sd15_normalbae was trained on
    midas   dx = dy = 0 behind `background`, and the channels the other way: R, G, B = front, up, left. CN's v1.0
            net was shown such a picture, and X returns it

z = 2 pi is the references' for the raw output of DPT-Hybrid (`sd.estimate_depth`). In other units slopes are others: a
larger z makes all flatter. Sources: X `midas` (`depth_and_normal`), X `normalbae` (encoding), CN 1.1's README (which
colour is which way).
"""

import math
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.diffusion.bounds import check_number
from sdjax.images.depth import read_depth
from sdjax.images.maps.depth import sized
from sdjax.images.maps.pictures import picture

STYLES = ("bae", "midas")


def normal(
    values: Any,
    style: str = "bae",
    z: float = 2 * math.pi,
    background: float | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """A normal map from inverse depth, larger is nearer.

    values: numbers `H W`, or a picture of 8 or 16 bits. style: "bae" (nets of v1.1) or "midas" (v1.0). z: larger is
    flatter. background: of "midas", the share of the depth's range that is taken for flat; 0.1 by default (W: 0.4).
    size: (height, width) to bring the depth to first.

    Raises ValueError, FileNotFoundError.
    """
    if style not in STYLES:
        raise ValueError(unknown(f"style={style!r} is unknown", style, STYLES))
    if style == "bae" and background is not None:
        raise ValueError(f'background={background} is for style="midas"; bae flattens nothing')
    check_number("z", z, 1e-3)
    flat = check_number("background", 0.1 if background is None else background, 0, 1)
    found = sized(read_depth(values), size)
    colours = _encoded(found, z, flat if style == "midas" else 0.0)
    return picture(colours[..., ::-1] if style == "midas" else colours)


def _encoded(values: np.ndarray, z: float, background: float) -> np.ndarray:
    """Equation (1): float32 `H W` -> uint8 `H W 3`, dx first."""
    span = values.max() - values.min()
    behind = values - values.min() < background * span
    slopes = [np.where(behind, 0, slope) for slope in _sobel(values)]
    vectors = np.stack([*slopes, np.full_like(values, z)], axis=-1)
    unit = vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    return np.clip(unit * 127.5 + 127.5, 0, 255).astype(np.uint8)


def _sobel(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(d/dx, d/dy) of float32 `H W`: [-1 0 1] along, [1 2 1] across."""
    mirrored = np.pad(values, 1, mode="reflect" if min(values.shape) > 1 else "edge")
    across = mirrored[:-2] + 2 * mirrored[1:-1] + mirrored[2:]
    down = mirrored[:, :-2] + 2 * mirrored[:, 1:-1] + mirrored[:, 2:]
    return across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
