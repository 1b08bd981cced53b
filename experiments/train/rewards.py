"""Rewards that can be asked for by a flag: scores of pictures `b H W 3` in [-1, 1], with a gradient.

    colour:R,G,B                  -|mean colour of a box - wanted|^2, colours in [-1, 1]                    (1)
    colour:R,G,B@x0,y0,x1,y1      of that box, in parts of width and height; else the middle half, each way

Any other is a function in a program of your own: see `sdjax.train.losses.reward`. A score says nothing of the prompt:
a model that is trained on it for long paints the box in that colour, whatever it was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.train.objective import Batch


@dataclass(frozen=True)
class BoxColour:
    """Equation 1. wanted: red, green, blue, 0 to 255. box: left, top, right, bottom, 0 to 1."""

    wanted: tuple[int, int, int]
    box: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.75)

    def __call__(self, pictures: jax.Array, params: Mapping[str, Any], batch: Batch) -> jax.Array:
        """See `reward.Score`."""
        h, w = pictures.shape[1:3]
        left, top, right, bottom = (round(one * side) for one, side in zip(self.box, (w, h, w, h), strict=True))
        found = pictures[:, top : max(bottom, top + 1), left : max(right, left + 1)].mean((1, 2))
        return -jnp.sum(jnp.square(found - (jnp.array(self.wanted) / 127.5 - 1)), axis=-1)


def read(text: str) -> BoxColour:
    """From the flag. Raises ValueError."""
    kind, _, rest = text.partition(":")
    numbers, at, corners = rest.partition("@")
    try:
        red, green, blue = map(int, numbers.split(","))
        left, top, right, bottom = map(float, corners.split(",")) if at else (0.25, 0.25, 0.75, 0.75)
        if kind != "colour" or not all(0 <= one <= 255 for one in (red, green, blue)):
            raise ValueError
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--reward={text}: it is colour:R,G,B, each from 0 to 255, or colour:R,G,B@x0,y0,x1,y1 with a box in parts "
            "of width and height"
        ) from None
    return BoxColour((red, green, blue), (left, top, right, bottom))
