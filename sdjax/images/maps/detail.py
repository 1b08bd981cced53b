"""A picture with its detail taken away: smaller, blurred, out of order, or a few colours.

    tile      the picture, or smaller by a factor (means of areas); the net adds the detail
    blur      a Gaussian of standard deviation sigma
    shuffle   u[y(i, j), x(i, j)], where x and y are smooth random fields over the whole picture
    color     a palette of squares: 1/64 of the size by bicubic samples, then nearest back

A random field is uniform noise of (H // f + 2) x (W // f + 2), enlarged to (H + 2 f) x (W + 2 f) by bicubic samples,
the outer f cut off, scaled to 0 .. 1; f = 256.

Sources: W's `tile_resample` and `blur_gaussian`, CN 1.1's and X's `shuffle`, T's `get_cond_color`.
"""

from types import ModuleType

import numpy as np
from PIL import Image

from sdjax.core.limits import MOST_COUNT
from sdjax.diffusion.bounds import check_number, check_whole
from sdjax.images.maps.pictures import opencv, picture, pixels
from sdjax.images.read import ImageLike

SQUARE = 64  # pixels of a palette's square
FIELD = 256  # pixels between two values of a random field
SMALLER = 1.1  # from this factor on `tile` changes the size


def tile(image: ImageLike, factor: float = 1.0) -> Image.Image:
    """The picture itself; from a factor of 1.1 on, so many times smaller. Raises ValueError, FileNotFoundError."""
    check_number("factor", factor, 1, 64)
    found = pixels(image)
    if factor < SMALLER:
        return picture(found)
    height, width = (max(1, int(side / factor)) for side in found.shape[:2])
    cv2 = opencv("tile")
    return picture(cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA))


def blur(image: ImageLike, sigma: float = 9.0) -> Image.Image:
    """The picture blurred by a Gaussian; `sigma` in pixels, 0.1 to 512. Raises ValueError, FileNotFoundError."""
    check_number("sigma", sigma, 0.1, 512)
    return picture(opencv("blur").GaussianBlur(pixels(image), (0, 0), float(sigma)))


def shuffle(image: ImageLike, seed: int = 0) -> Image.Image:
    """The picture's colours and textures, its places mixed up; the same seed mixes alike.

    Raises ValueError, FileNotFoundError.
    """
    random = np.random.default_rng(check_whole("seed", seed, 0, MOST_COUNT))
    cv2, found = opencv("shuffle"), pixels(image)
    height, width = found.shape[:2]
    across, down = (_field(height, width, random, cv2) * (side - 1) for side in (width, height))
    return picture(cv2.remap(found, across.astype(np.float32), down.astype(np.float32), cv2.INTER_LINEAR))


def color(image: ImageLike) -> Image.Image:
    """The picture's palette: squares of 64 pixels, each of one colour. Raises ValueError, FileNotFoundError."""
    cv2, found = opencv("color"), pixels(image)
    height, width = found.shape[:2]
    few = max(1, width // SQUARE), max(1, height // SQUARE)
    small = cv2.resize(found, few, interpolation=cv2.INTER_CUBIC)
    return picture(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))


def _field(height: int, width: int, random: np.random.Generator, cv2: ModuleType) -> np.ndarray:
    """A smooth random field `height width`, from 0 to 1."""
    noise = random.uniform(size=(height // FIELD + 2, width // FIELD + 2))
    smooth = cv2.resize(noise, (width + 2 * FIELD, height + 2 * FIELD), interpolation=cv2.INTER_CUBIC)
    smooth = smooth[FIELD : FIELD + height, FIELD : FIELD + width]
    span = np.ptp(smooth)
    return (smooth - smooth.min()) / span if span else np.zeros_like(smooth)  # of a single pixel
