"""Depth maps for depth models: estimated from a picture, or given; and as the U-Net's fifth channel.

    map `H W`, larger is nearer -> torch's bicubic to the latents' size -> 2 (d - min) / (max - min) - 1        (1)

as pipeline_stable_diffusion_depth2img.py of diffusers prepares it. A flat map says nothing, and becomes zeros.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.images import read
from sdjax.nn.resize import bicubic

DEEP = ("I", "F")  # PIL's modes that begin so hold more than 8 bits


def depth_channel(depth: jax.Array | np.ndarray, size: tuple[int, int]) -> jax.Array:
    """Equation 1: a map `H W` -> `h w 1` of that size, float32 in [-1, 1]."""
    depth = jnp.asarray(depth, jnp.float32)
    small = bicubic(depth[None, :, :, None], size)[0]
    least, most = small.min(), small.max()
    # Whether it is flat is asked of the map itself: resized, it varies by rounding, which would be made to span it all.
    uneven = (depth.max() > depth.min()) & (most > least)
    span = jnp.where(uneven, most - least, 1.0)
    return jnp.where(uneven, 2 * (small - least) / span - 1, 0.0)


def read_depth(value: Any, name: str = "depth") -> np.ndarray:
    """A map given by a user, light is near, as float32 `H W`: a picture of 8 or 16 bits, or an array of numbers.

    Raises ValueError, FileNotFoundError.
    """
    if isinstance(value, np.ndarray) and not (value.dtype == np.uint8 and value.ndim == 3):
        return _from_array(value, name)
    opened = read.open_image(value, name)
    if opened.mode.startswith(DEEP):
        return _from_array(np.asarray(opened), name)
    return _from_array(np.asarray(read.read_image(opened, name).convert("L")), name)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"{name} must be a picture or an array of numbers [H, W], not {array.dtype} {list(array.shape)}"
        )
    if np.iscomplexobj(array) or not (np.abs(array.astype(np.float64)) <= np.finfo(np.float32).max / 4).all():
        raise ValueError(f"{name} holds values that are no finite numbers, or too large for float32")
    return array.astype(np.float32)
