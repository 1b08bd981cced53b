"""Masks: which part of a picture is made anew, and how the part that was made goes back into it.

A mask m is 1 (white) where the picture is painted anew and 0 (black) where it is kept. In numbers:

    (1)  m = u / 255, u the 8-bit values, resized by Lanczos where another size is asked. A mask of blacks and
         whites alone is cut at 1/2 afterwards, so that it stays one; a soft mask stays soft
    (2)  on the latents, f times smaller: m[f i, f j], torch's "nearest" interpolation (`jax.image.resize` would
         take the middles of the patches, m[f i + f/2, f j + f/2])
    (3)  a 9-channel inpainting model is shown the pixels x where m < 1/2, and 0 (middle grey) elsewhere
    (4)  the result: (m made + (255 - m) original) / 255 in whole numbers, hence the original's own bits where m = 0

Sources: diffusers 0.42.1, image_processor.py (`preprocess`, `binarize`, `blur`, `get_crop_region`,
`apply_overlay`) and pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py (`prepare_mask_latents`).
Masks and pictures are PIL images of modes L and RGB, as `images` reads them; boxes are (left, top, right, bottom).
"""

import numpy as np
from PIL import Image, ImageFilter

from sdjax.core.limits import MOST_BLUR
from sdjax.core.notice import notice
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.diffusion.bounds import as_float

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are past the last ones

MAX_GROWN = 8192  # pixels along a side of a grown canvas


def to_mask(mask: Image.Image, height: int, width: int) -> np.ndarray:
    """A mask of mode L as float32 [height, width, 1] in [0, 1], equation (1)."""
    hard = not any(mask.histogram()[1:255])
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.LANCZOS)
    values = np.asarray(mask, np.float32)[..., None] / 255
    return (values >= 0.5).astype(np.float32) if hard else values


def check_mask(mask: Image.Image, image: Image.Image, name: str = "mask", *, full: bool = False) -> None:
    """Raises ValueError for another size than the picture's, a black mask, and a white one unless it may be `full`."""
    if mask.size != image.size:
        raise ValueError(
            f"{name} is {mask.width} x {mask.height} and the picture {image.width} x {image.height}; they must lie on "
            "each other pixel by pixel"
        )
    least, most = mask.getextrema()
    if most == 0:
        raise ValueError(f"{name} is black all over and leaves nothing to paint; white is what is painted anew")
    if least == 255 and not full:
        raise ValueError(f"{name} is white all over and keeps nothing: leave {name}= out for image-to-image")


def blurred(mask: Image.Image, radius: float) -> Image.Image:
    """The mask with soft edges, by a Gaussian whose standard deviation is `radius` pixels; 0 leaves it as it is.

    Raises ValueError for a radius that is none, and for one that leaves the mask black, so that nothing is painted.
    """
    pixels = as_float(radius)
    if not 0 <= pixels <= MOST_BLUR:
        raise ValueError(f"mask_blur must be a number of pixels >= 0 and at most {MOST_BLUR}, not {short(radius)}")
    soft = mask.filter(ImageFilter.GaussianBlur(pixels)) if pixels else mask.copy()
    before, after = (int(np.asarray(one).max()) for one in (mask, soft))
    if after == 0 < before:
        raise ValueError(
            f"mask_blur={pixels:g} spreads the white so thin that the mask is black all over and nothing is painted; "
            "give a smaller one"
        )
    if 2 * after < before:
        notice(f"mask_blur={pixels:g} leaves the mask at most {after / 2.55:.0f} % white: little is painted anew")
    return soft


def crop_box(mask: Image.Image, padding: int, height: int, width: int) -> Box:
    """The box to work on alone: all that is not black, `padding` pixels around it, grown to the aspect asked.

    The aspect is that of `width` x `height`, to a pixel, unless the picture's edges forbid it. Raises ValueError
    for a black mask.
    """
    found = mask.getbbox()
    if found is None:
        raise ValueError("the mask is black all over and leaves nothing to paint; white is what is painted anew")
    left, top = max(found[0] - padding, 0), max(found[1] - padding, 0)
    right, bottom = min(found[2] + padding, mask.width), min(found[3] + padding, mask.height)
    aspect = width / height
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widened(top, bottom, (right - left) / aspect, mask.height)
    else:
        left, right = _widened(left, right, (bottom - top) * aspect, mask.width)
    return left, top, right, bottom


def _widened(start: int, stop: int, length: float, limit: int) -> tuple[int, int]:
    """[start, stop) grown to `length` on both sides alike, moved to lie in [0, limit), cut where it's longer."""
    extra = int(length - (stop - start))
    length = min(stop - start + extra, limit)
    start = min(max(start - extra // 2, 0), limit - length)
    return start, start + length


def paste(made: Image.Image, original: Image.Image, mask: Image.Image, box: Box | None = None) -> Image.Image:
    """What was made for `box` (default: all) put into a copy of the original where the mask is white, equation (4).

    The mask has the original's size. `made` may have another than the box: it is resized by Lanczos. Outside
    the box the original stays, whatever the mask. Raises ValueError for sizes that don't fit.
    """
    box = box or (0, 0, *original.size)
    left, top, right, bottom = box
    if mask.size != original.size:
        raise ValueError(
            f"the mask is {mask.width} x {mask.height} and the picture {original.width} x {original.height}"
        )
    if not (0 <= left < right <= original.width and 0 <= top < bottom <= original.height):
        raise ValueError(f"the box {box} does not lie in the picture of {original.width} x {original.height}")
    if made.size != (right - left, bottom - top):
        made = made.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    result = original.copy()
    result.paste(made, box, mask.crop(box))
    return result


def grow(
    image: Image.Image, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, ramp: int = 0
) -> tuple[Image.Image, Image.Image]:
    """A picture on a larger canvas and the mask of what is new, for outpainting.

    `left`, `top`, `right`, `bottom`: pixels added on each side, where the picture's outermost colours go on.
    The mask is white there. From each side that grew it falls in equal steps over `ramp` pixels of the old
    picture, and is 0 beyond. Raises ValueError for sizes that are no whole numbers >= 0, all 0, too large, or a
    ramp that leaves nothing of the picture as it is.
    """
    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    _check_grown(image, sides, ramp)
    across, down = _ramp(image.width, left, right, ramp), _ramp(image.height, top, bottom, ramp)
    mask = np.maximum(across[None, :], down[:, None])
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    return Image.fromarray(pixels), Image.fromarray(np.rint(255 * mask).astype(np.uint8))


def _check_grown(image: Image.Image, sides: dict[str, int], ramp: int) -> None:
    for name, value in {**sides, "ramp": ramp}.items():
        if not is_number(value, int | np.integer) or value < 0:
            raise ValueError(f"{name} must be a whole number of pixels >= 0, not {value!r}")
    if not any(sides.values()):
        raise ValueError("nothing to grow: give left, top, right or bottom, in pixels")
    for old, pair in ((image.width, ("left", "right")), (image.height, ("top", "bottom"))):
        grown = sum(sides[name] for name in pair)
        if old + grown > MAX_GROWN:
            raise ValueError(f"{' and '.join(pair)} make a side of {old + grown} pixels; at most {MAX_GROWN} are made")
        ramps = ramp * sum(sides[name] > 0 for name in pair)
        if ramps and ramps >= old:
            raise ValueError(
                f"a ramp of {ramp} pixels leaves nothing of the picture's {old} as it is; give a shorter one"
            )


def _ramp(old: int, before: int, after: int, ramp: int) -> np.ndarray:
    """The mask along one axis [before + old + after]: 1 on what is new, ramp/(ramp + 1) ... 1/(ramp + 1), 0."""
    slope = np.arange(ramp, 0, -1) / (ramp + 1)
    line = np.zeros(old)
    if before:
        line[:ramp] = slope
    if after:
        line[old - ramp :] = slope[::-1]
    return np.pad(line, (before, after), constant_values=1.0)


def latent_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask [H, W, 1] on the latents, [H / factor, W / factor, 1], equation (2).

    Raises ValueError where nothing is left of a mask because all of it falls between the points that are taken.
    """
    height, width = (side // factor * factor for side in mask.shape[:2])
    small = mask[:height:factor, :width:factor]
    if mask.any() and not small.any():
        raise ValueError(
            f"the mask is too small for the model, whose latents are patches of {factor} x {factor} pixels; paint more "
            "white, or give mask_crop= to work on that part alone, enlarged"
        )
    return small


def masked(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] in [-1, 1] with 0 where the mask [H, W, 1] is 1/2 or more, equation (3)."""
    return np.where(mask < 0.5, pixels, np.float32(0))
