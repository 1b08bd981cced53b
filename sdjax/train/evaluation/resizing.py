"""Resizing before Inception: three ways in use, none of which gives the others' distances (Parmar et al. 2022).

    "clean"        bicubic with a = -1/2, widened where it makes smaller (antialias), each colour in float32: PIL's, as
                   clean-fid has it (arXiv:2104.11222). What to take where nothing is to be compared with older numbers.
    "pytorch"      bilinear, pixel centres aligned, no antialias: torch's `interpolate`, as pytorch-fid has it.
    "tensorflow"   bilinear, the first pixels' corners aligned and nothing else, no antialias: TensorFlow 1's, as in the
                   original program and torch-fidelity. Output pixel i looks at the place i m / n of m input pixels.

8-bit values in, 0 to 255; float32 out in the same range, not rounded. Whether pictures were kept as PNG or as JPEG
matters as much (ibid.).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.nn.resize import bilinear


def resized(pictures: np.ndarray, side: int, resizer: str = "clean") -> np.ndarray:
    """uint8 `b H W 3` -> float32 `b side side 3`, 0 to 255. Raises ValueError for another resizer or dtype."""
    if resizer not in RESIZERS:
        raise ValueError(unknown(f"resizer {resizer!r} is unknown", resizer, RESIZERS))
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [b, H, W, 3], not {pictures.dtype} {list(pictures.shape)}")
    return RESIZERS[resizer](pictures, side)


def _clean(pictures: np.ndarray, side: int) -> np.ndarray:
    return np.stack([np.stack([_channel(one[..., i], side) for i in range(3)], -1) for one in pictures])


def _channel(channel: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)


def _pytorch(pictures: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(bilinear(jnp.asarray(pictures, jnp.float32), (side, side)))


def _tensorflow(pictures: np.ndarray, side: int) -> np.ndarray:
    x = pictures.astype(np.float32)
    for axis in (1, 2):
        place = np.arange(side, dtype=np.float32) * np.float32(x.shape[axis] / side)
        first = np.minimum(np.floor(place).astype(int), x.shape[axis] - 1)
        second = np.minimum(first + 1, x.shape[axis] - 1)
        between = (place - first).reshape([-1 if i == axis else 1 for i in range(4)])
        low, high = np.take(x, first, axis), np.take(x, second, axis)
        x = low + (high - low) * between
    return x


RESIZERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "clean": _clean,
    "pytorch": _pytorch,
    "tensorflow": _tensorflow,
}
