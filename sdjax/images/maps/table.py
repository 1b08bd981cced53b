"""All maps by their names."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.images.maps import depth, detail, edges, inpaint, lines, normals, openpose, segmentation, tones

Map = Callable[..., Image.Image | np.ndarray]

MAPS: dict[str, Map] = {
    "canny": edges.canny,
    "scribble": edges.scribble,
    "scribble_hed": edges.scribble_hed,
    "scribble_xdog": edges.scribble_xdog,
    "lineart_standard": lines.lineart_standard,
    "lines": lines.lines,
    "grey": tones.grey,
    "invert": tones.invert,
    "threshold": tones.threshold,
    "recolor": tones.recolor,
    "tile": detail.tile,
    "blur": detail.blur,
    "shuffle": detail.shuffle,
    "color": detail.color,
    "depth": depth.depth,
    "normal": normals.normal,
    "segmentation": segmentation.segmentation,
    "inpaint": inpaint.inpaint,
    "openpose": openpose.openpose,
}


def make(name: str, image: Any, **options: Any) -> Image.Image | np.ndarray:
    """The map of that name: an RGB picture, or float32 `H W 3` of `inpaint`, which has -1 in it.

    image: a PIL image, a file's path or a uint8 array; of depth and normal a depth map, of segmentation labels, of
    openpose keypoints. options: those of the function in MAPS.

    Raises ValueError, FileNotFoundError.
    """
    check(name, options)
    return MAPS[name](image, **options)


def check(name: str, options: Collection[str]) -> None:
    """Raises ValueError for a map that there is not, an option that it does not have, one that it needs."""
    if not isinstance(name, str) or name not in MAPS:
        raise ValueError(unknown(f"map {short(name)} is unknown", name, MAPS))
    _, *takes = inspect.signature(MAPS[name]).parameters.values()
    names = [one.name for one in takes]
    for option in options:
        if option not in names:
            wrong = f"the map {name!r} has no option {short(option)}"
            raise ValueError(unknown(wrong, option, names) if names else f"{wrong}, nor any other")
    for one in takes:
        if one.default is one.empty and one.name not in options:
            raise ValueError(f"the map {name!r} needs {one.name}=")
