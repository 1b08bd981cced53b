"""Pixels as the networks have them, float32 in [-1, 1], as files do, uint8, and as the bytes of a PNG."""

import io

import numpy as np
from PIL import Image


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] as uint8, rounded; what lies outside is clipped, and NaN is black."""
    return np.nan_to_num(np.clip(np.rint((pixels + 1) * 127.5), 0, 255)).astype(np.uint8)


def from_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def encoded(image: Image.Image) -> bytes:
    """The bytes of a PNG file, with the texts that the image carries."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
