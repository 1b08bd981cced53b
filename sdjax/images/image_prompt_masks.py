"""Where in a picture an image prompt counts: its mask on every level of a U-Net.

As diffusers has it (image_processor.py, IPAdapterMaskProcessor): the mask is brought to the picture's size by Lanczos,
made black and white, and then resized to each level's tokens by the cubic of torch (`nn.resize`, equation 3), which
looks at few pixels and may go a little below 0 and above 1. diffusers guesses a level's height and width from the
number of its tokens and the mask's aspect; where they are known, as here, a picture of odd sides is not sheared.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from sdjax.images.masks import to_mask
from sdjax.nn.resize import cubic_weights


def image_masks(mask: Image.Image, height: int, width: int, levels: Iterable[tuple[int, int]]) -> dict[int, np.ndarray]:
    """A mask of mode L (see `read_mask`) on levels of h x w tokens: {h w: float32 `h w`}, rows one after the other.

    white: where the image prompt counts. height, width: of the picture that is to be made, in pixels.
    """
    hard = (to_mask(mask, height, width)[..., 0] >= 0.5).astype(np.float64)
    return {h * w: _resized(hard, h, w).reshape(-1) for h, w in levels}


def _resized(mask: np.ndarray, h: int, w: int) -> np.ndarray:
    """`H W -> h w`, float32."""
    rows, columns = (cubic_weights(had, wanted) for had, wanted in zip(mask.shape, (h, w), strict=True))
    return (rows @ mask @ columns.T).astype(np.float32)
