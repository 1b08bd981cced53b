"""The map of inpainting ControlNets (control_v11p_sd15_inpaint): the picture, and -1 where it is to be made anew.

    u / 255 where the mask is at most 1/2, -1 in all channels elsewhere                                             (1)

D's `make_inpaint_condition`; W's `c (1 - m) - m` is the same. -1 is outside of what a picture of 8 bits holds, so that
this map is an array.
"""

import numpy as np
from PIL import Image

from sdjax.images import masks
from sdjax.images.maps.pictures import pixels
from sdjax.images.read import ImageLike, read_mask

ANEW = -1.0


def inpaint(image: ImageLike, mask: ImageLike) -> np.ndarray:
    """Equation (1): float32 `H W 3`, in [0, 1] or -1.

    mask: white is made anew, of the picture's size. Raises ValueError, FileNotFoundError.
    """
    found, hole = pixels(image), read_mask(mask)
    masks.check_mask(hole, Image.fromarray(found), full=True)
    return np.where(np.asarray(hole)[..., None] / 255 > 0.5, np.float32(ANEW), found.astype(np.float32) / 255)
