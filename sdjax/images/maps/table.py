"""All maps by their names."""

import inspect
from collections.abc import Callable
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
    if not isinstance(name, str) or name not in MAPS:
        raise ValueError(unknown(f"map {short(name)} is unknown", name, MAPS))
    takes = options_of(name)
    for option in options:
        if option not in takes:
            wrong = f"the map {name!r} has no option {short(option)}"
            raise ValueError(unknown(wrong, option, takes) if takes else f"{wrong}, nor any other")
    if missing := [option for option, default in takes.items() if default is inspect.Parameter.empty]:
        absent = [option for option in missing if option not in options]
        if absent:
            raise ValueError(f"the map {name!r} needs {', '.join(f'{option}=' for option in absent)}")
    return MAPS[name](image, **options)


def options_of(name: str) -> dict[str, Any]:
    """A map's options with their defaults, `inspect.Parameter.empty` for one that must be given."""
    _, *others = inspect.signature(MAPS[name]).parameters.values()
    return {one.name: one.default for one in others}
