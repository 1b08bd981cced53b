"""Rewards that can be asked for by a flag: scores of pictures `b H W 3` in [-1, 1], with a gradient.

    colour:R,G,B    -|mean colour of the middle half, each way - wanted|^2, colours in [-1, 1]              (1)

Any other is a function in a program of your own: see `sdjax.train.losses.reward`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.train.objective import Batch


@dataclass(frozen=True)
class MiddleColour:
    """Equation 1. wanted: red, green, blue, 0 to 255."""

    wanted: tuple[int, int, int]

    def __call__(self, pictures: jax.Array, params: Mapping[str, Any], batch: Batch) -> jax.Array:
        """See `reward.Score`."""
        h, w = pictures.shape[1:3]
        middle = pictures[:, h // 4 : h - h // 4, w // 4 : w - w // 4].mean((1, 2))
        return -jnp.sum(jnp.square(middle - (jnp.array(self.wanted) / 127.5 - 1)), axis=-1)


def read(text: str) -> MiddleColour:
    """From the flag. Raises ValueError."""
    kind, _, numbers = text.partition(":")
    parts = numbers.split(",")
    if kind != "colour" or len(parts) != 3 or not all(one.isdigit() and int(one) <= 255 for one in parts):
        raise ValueError(f"--reward={text}: it is colour:R,G,B, each from 0 to 255")
    red, green, blue = map(int, parts)
    return MiddleColour((red, green, blue))
