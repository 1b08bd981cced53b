"""The door for the maps that control networks look at: edges, depth, a pose, as numbers from 0 to 1.

A map is a picture whose values count, so nothing of it is guessed: one that is partly transparent does not say what
lies under it, and inks are no light. 16 bits and 1 bit count as what they are. Or it is an array of floats `H W c`, in
which -1 marks what is hidden, as nets for inpainting were trained (lllyasviel/ControlNet-v1-1-nightly, README: masked
pixels are -1 in all channels).

A map's size need not be the picture's, but its shape must, unless `resize` says what to do: "stretch" is what diffusers
does (`VaeImageProcessor.preprocess`), "crop" fills the picture and cuts what is too much, "fill" fits the map into it
and goes on with the colour of its edge (A1111's three resize modes). By Lanczos always.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.images.masks import Box
from sdjax.images.read import open_image, read_image

RESIZES = ("stretch", "crop", "fill")
HIDDEN = -1.0
Array = np.ndarray


def read_map(value: Any, name: str = "control") -> Array:
    """A map of any size, float32 `H W c`: of a picture 3 channels in [0, 1]. Raises ValueError, FileNotFoundError."""
    if isinstance(value, np.ndarray | jax.Array) and np.issubdtype(np.asarray(value).dtype, np.floating):
        return _floats(np.asarray(value, np.float32), name)
    image = open_image(value, name)
    if image.mode == "CMYK":
        raise ValueError(f"{name} is in inks (CMYK), and a map is read as light: save it as RGB")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError(
            f"{name} is partly transparent, and what lies under it is not known: lay it over black (lines, poses) or "
            "white and save it as RGB"
        )
    return np.asarray(read_image(image, name), np.float32) / 255


def _floats(array: Array, name: str) -> Array:
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size:
        raise ValueError(f"{name} as an array of floats must be `H W c`, not {list(array.shape)}")
    if not (((array >= 0) & (array <= 1)) | (array == HIDDEN)).all():
        raise ValueError(f"{name} as an array of floats must lie between 0 and 1, or be {HIDDEN:g} where it is hidden")
    return array


def fitted(
    array: Array,
    size: tuple[int, int],
    channels: int,
    resize: str | None,
    slack: int,
    name: str,
    box: Box | None = None,
) -> Array:
    """A map at the picture's `size` (height, width) and in so many channels, float32 `H W c`.

    slack: by how many pixels its shape may miss the picture's. box: what of the map is taken.
    Raises ValueError for another shape where `resize` is None, and for channels that it cannot have.
    """
    if resize is not None and resize not in RESIZES:
        raise ValueError(unknown(f"{name}: resize {short(resize)} is unknown", resize, RESIZES))
    if box is not None:
        left, top, right, bottom = box
        array = array[top:bottom, left:right]
    array, (height, width) = _in_channels(array, channels, name), size
    if array.shape[:2] == size:
        return array
    high, wide = array.shape[:2]
    if resize is None and (abs(high * width / wide - height) >= slack or abs(wide * height / high - width) >= slack):
        raise ValueError(
            f"{name} is {wide} x {high} and the picture {width} x {height}, which is another shape: give "
            'resize="stretch", "crop" or "fill", or the picture the width and height of its map'
        )
    return WAYS[resize or "stretch"](array, size)


def _in_channels(array: Array, channels: int, name: str) -> Array:
    """Grey of colours by the weights of PIL's "L", colours of grey by repeating it."""
    own = array.shape[-1]
    if own == channels:
        return array
    if own == 1:
        return np.repeat(array, channels, axis=-1)
    if own == 3 and channels == 1:
        return array @ np.array([[0.299], [0.587], [0.114]], np.float32)
    raise ValueError(f"{name} has {own} channels, and this net looks at {channels}")


def _lanczos(array: Array, size: tuple[int, int]) -> Array:
    """By PIL: of 8-bit values as such, of others each channel by itself; what is hidden stays so."""
    (height, width), values = size, np.rint(array * 255)
    if array.shape[-1] == 3 and np.array_equal(array, (values / 255).astype(np.float32)) and array.min() >= 0:
        image = Image.fromarray(values.astype(np.uint8))
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255
    hidden = (array == HIDDEN).all(axis=-1)
    shown = np.stack([_channel(one, size) for one in np.moveaxis(np.maximum(array, 0), -1, 0)], axis=-1)
    if hidden.any():
        mask = Image.fromarray(np.uint8(255) * hidden).resize((width, height), Image.Resampling.NEAREST)
        shown[np.asarray(mask) > 127] = HIDDEN
    return shown


def _channel(values: Array, size: tuple[int, int]) -> Array:
    image = Image.fromarray(np.ascontiguousarray(values)).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.clip(np.asarray(image, np.float32), 0, 1)


def _cropped(array: Array, size: tuple[int, int]) -> Array:
    (height, width), (high, wide) = size, array.shape[:2]
    scale = max(height / high, width / wide)
    enlarged = _lanczos(array, (max(height, round(high * scale)), max(width, round(wide * scale))))
    top, left = (enlarged.shape[0] - height) // 2, (enlarged.shape[1] - width) // 2
    return enlarged[top : top + height, left : left + width]


def _filled(array: Array, size: tuple[int, int]) -> Array:
    (height, width), (high, wide) = size, array.shape[:2]
    scale = min(height / high, width / wide)
    inner = _lanczos(array, (min(height, round(high * scale)), min(width, round(wide * scale))))
    edge = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
    made = np.broadcast_to(np.median(edge, axis=0).astype(np.float32), (height, width, array.shape[-1])).copy()
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    made[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return made


WAYS: dict[str, Callable[[Array, tuple[int, int]], Array]] = {"stretch": _lanczos, "crop": _cropped, "fill": _filled}
