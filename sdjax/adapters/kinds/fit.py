"""When a change is for a weight: the shapes in which files hold one, and how it is laid upon the other.

A 1x1 convolution and a linear layer are the same numbers, so `o i` and `o i 1 1` stand for each other: SD 1's `proj_in`
is a convolution and SDXL's a linear layer. Some files keep a convolution's change as one matrix, `o ihw`.

The first convolution of an inpainting model has 9 input channels (of a depth model 5, of InstructPix2Pix 8) where the
models that adapters are trained on have 4. The first 4 are the noisy latents in all of them, so such a change is
continued by zeros.
"""

import math

import numpy as np

from sdjax.adapters.kinds.delta import Delta
from sdjax.core.tree import Shape

LATENT_CHANNELS, MOST_CHANNELS = 4, 9


def check(change: Shape, shape: Shape) -> None:
    """Raises ValueError where a change of one shape is for no weight of the other."""
    if _bare(change) == _bare(shape) or _is_flat(change, shape) or _is_first(change, shape):
        return
    raise ValueError(f"it is for a weight of {list(change)}, and this one is {list(shape)}")


def fitted(change: np.ndarray, shape: Shape) -> np.ndarray:
    """A change in the shape of its weight: a view, or padded with zeros. Raises ValueError as `check` does."""
    check(change.shape, shape)
    if change.size == math.prod(shape):
        return change.reshape(shape)
    more = shape[1] - change.shape[1]
    return np.pad(change, [(0, 0), (0, more), (0, 0), (0, 0)])


def factors_for(delta: Delta, shape: Shape) -> tuple[np.ndarray, np.ndarray] | None:
    """A delta's factors for a weight of this shape: down `r i` or `r i h w` as the weight's own axes, up `o r`.

    None where it has none. Raises ValueError as `check` does.
    """
    delta.check(shape)
    if (found := delta.factors()) is None:
        return None
    down, up = found
    return fitted(down, (len(down), *shape[1:])), up


def _bare(shape: Shape) -> Shape:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _is_flat(change: Shape, shape: Shape) -> bool:
    return len(change) == 2 and len(shape) == 4 and change == (shape[0], math.prod(shape[1:]))


def _is_first(change: Shape, shape: Shape) -> bool:
    return (
        len(change) == len(shape) == 4
        and (change[0], *change[2:]) == (shape[0], *shape[2:])
        and change[1] == LATENT_CHANNELS < shape[1] <= MOST_CHANNELS
    )
