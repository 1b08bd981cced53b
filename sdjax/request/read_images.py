"""From the pictures, masks and latents that `generate` was given to `ImageInputs`: checked and of one size each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.diffusion.segment import check_strength
from sdjax.images import control_map, depth, masks, read
from sdjax.model.spec import ModelSpec
from sdjax.model.tasks import FOR
from sdjax.request import checks
from sdjax.request.arguments.arguments import Arguments
from sdjax.request.arguments.batch import Batch
from sdjax.request.arguments.control import ControlArguments
from sdjax.request.arguments.images import ImageArguments
from sdjax.request.image_inputs import ImageInputs, Under
from sdjax.request.per_picture import read_each

Sizes = tuple[int, int]  # height, width

STRENGTH = 0.8  # of image-to-image where none is given (as in diffusers); with a mask 1
NOISE_LEVEL = 20  # of the upscaler, as in diffusers


def read_image_inputs(spec: ModelSpec, given: Arguments, count: int) -> ImageInputs:
    """For `count` pictures. Raises ValueError, also for what the model needs or cannot use."""
    task, images, batch = spec.task, given.images, given.batch
    _check_wanted(spec, {name for name in ("image", *FOR) if getattr(images, name) is not None})
    _check_together(given)
    if images.image is None:
        natural = partial(_natural_of_map, given.control, spec.vae.factor) if given.control.maps else None
        height, width = _size(spec, batch, count, natural)
        return ImageInputs(task, height, width, (None,) * count, depth=_depth(images.depth, count))
    if _is_floats(images.image):
        return _from_latents(spec, given, count)
    pictures = read_each(images.image, count, "image", read.read_image)
    if task.varies:
        return ImageInputs(task, *_size(spec, batch, count), (None,) * count, sources=tuple(pictures))
    if task.enlarges:
        return _to_be_enlarged(spec, given, pictures)
    if images.mask is not None:
        return _under_masks(spec, given, pictures)
    size = _size(spec, batch, count, partial(_natural, pictures, spec.vae.factor))
    strengths = _strengths(images, count) if task.begins else (None,) * count
    return ImageInputs(
        task, *size, strengths, pixels=_pixels(pictures, size), depth=_depth(images.depth, count),
        sources=tuple(pictures),
    )  # fmt: skip


def _check_wanted(spec: ModelSpec, has: set[str]) -> None:
    """Raises ValueError where the model needs what was not given, or was given what it cannot use."""
    task = spec.task
    for name in sorted(has - task.usable()):
        raise ValueError(f"{spec.name} is a model for {task.name} and has no use for {name}=; it is for {FOR[name]}")
    if not task.has_needed(has):
        raise ValueError(f"{spec.name} is a model for {task.name}: {task.remedy}")
    if task.maps_depth and "depth" not in has and spec.depth_estimator is None:
        raise ValueError(f"{spec.name} has no depth_estimator: give depth=, a map of what is near (light)")
    for name in ("mask", "strength"):
        if name in has and "image" not in has:
            raise ValueError(f"{name}= belongs to a picture; give image= as well")


def _check_together(given: Arguments) -> None:
    """Raises ValueError for arguments that do not go together."""
    images = given.images
    if images.mask is None and (images.mask_blur not in (0, None) or images.mask_crop is not None):
        raise ValueError("mask_blur and mask_crop belong to a mask; give mask= as well")
    if images.mask_crop is not None and images.regions is not None:
        raise ValueError("regions lie in the whole picture, and mask_crop works on a part of it; give one of them")
    if images.mask_crop is not None and images.depth is not None:
        raise ValueError("depth= maps the whole picture, and mask_crop works on a part of it; give one of them")
    if images.image is not None and given.handoff.denoising_start is not None:
        raise ValueError("image= begins a run and denoising_start= goes on with one; give one of them")


# ---------------------------------------------------------------------- one kind of input each


def _from_latents(spec: ModelSpec, given: Arguments, count: int) -> ImageInputs:
    task = spec.task
    if not task.from_latents:
        raise ValueError(f"{spec.name} is a model for {task.name} and needs the picture itself; latents will not do")
    if task.maps_depth and given.images.depth is None:
        raise ValueError(f"{spec.name} cannot tell depth from latents: give depth= as well, or the picture itself")
    if given.images.mask_crop is not None:
        raise ValueError("mask_crop cuts out a part of a picture; with latents as image= there is none to cut")
    array, channels, factor = (
        checks.floats(given.images.image, "image= as latents"),
        spec.vae.latent_channels,
        spec.vae.factor,
    )
    if array.ndim != 4 or array.shape[-1] != channels or array.shape[0] not in (1, count):
        raise ValueError(
            f"image as an array of floats is latents, [{count}, height, width, {channels}] for these pictures, not "
            f"{list(array.shape)}; give a picture as a PIL image, a path or an array of uint8"
        )
    own = array.shape[1] * factor, array.shape[2] * factor
    if _size(spec, given.batch, count, lambda: own) != own:
        raise ValueError(f"image= holds latents of {own[1]} x {own[0]} pixels; leave height and width out")
    latents = np.broadcast_to(array, (count, *array.shape[1:]))
    small = None if given.images.mask is None else _latent_masks(given.images, count, array.shape[1:3], factor)
    maps = _depth(given.images.depth, count)
    return ImageInputs(task, *own, _strengths(given.images, count), latents=latents, latent_mask=small, depth=maps)


def _latent_masks(given: ImageArguments, count: int, size: Sequence[int], factor: int) -> np.ndarray:
    """Masks beside latents: an array of floats `b h w 1` of the latents' size, or pictures of the pixels'."""
    if not _is_floats(given.mask):
        pictures = read_each(given.mask, count, "mask", read.read_mask)
        for one in pictures:
            masks.check_mask(one, Image.new("L", (size[1] * factor, size[0] * factor)))
        soft = [masks.blurred(one, given.mask_blur) for one in pictures]
        full = [masks.to_mask(one, size[0] * factor, size[1] * factor) for one in soft]
        return np.stack([masks.latent_mask(one, factor) for one in full])
    array = checks.floats(given.mask, "mask= as numbers")
    if array.ndim != 4 or array.shape[0] not in (1, count) or array.shape[1:] != (*size, 1):
        raise ValueError(f"mask as an array of floats must be {[count, *size, 1]}, not {list(array.shape)}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("mask as an array of floats must lie between 0 (kept) and 1 (made anew)")
    if not array.any() or given.mask_blur:
        raise ValueError("mask as an array of floats must be above 0 somewhere, and is as soft as it is: no mask_blur")
    return np.broadcast_to(array, (count, *size, 1))


def _to_be_enlarged(spec: ModelSpec, given: Arguments, pictures: Sequence[Image.Image]) -> ImageInputs:
    factor = spec.vae.factor

    def natural() -> Sizes:
        height, width = _natural(pictures, 1)
        return height * factor, width * factor

    height, width = _size(spec, given.batch, len(pictures), natural)
    asked = given.images.noise_level
    level = checks.check_count(NOISE_LEVEL if asked is None else asked, 0, "noise_level")
    if level > spec.most_noise:
        raise ValueError(f"noise_level must be at most {spec.most_noise} for {spec.name}, not {level}")
    pixels = _pixels(pictures, (height // factor, width // factor))
    noise = spec.low_res_noise.level(level)
    none = (None,) * len(pictures)
    return ImageInputs(spec.task, height, width, none, pixels=pixels, noise_level=level, low_res=noise)


def _under_masks(spec: ModelSpec, given: Arguments, pictures: Sequence[Image.Image]) -> ImageInputs:
    count, factor, task = len(pictures), spec.vae.factor, spec.task
    drawn = read_each(given.images.mask, count, "mask", read.read_mask)
    for picture, mask in zip(pictures, drawn, strict=True):
        masks.check_mask(mask, picture, full=task.shows_mask)
    drawn = [masks.blurred(mask, given.images.mask_blur) for mask in drawn]
    boxes: list[masks.Box | None] = [None] * count
    if given.images.mask_crop is None:
        size = _size(spec, given.batch, count, partial(_natural, pictures, factor))
    else:
        size, padding = _size(spec, given.batch, count), checks.check_count(given.images.mask_crop, 0, "mask_crop")
        boxes = [masks.crop_box(mask, padding, *size) for mask in drawn]
        if len({picture.size for picture in pictures}) > 1:
            raise ValueError("mask_crop pastes its results into the pictures, which must be of one size for one call")
    cut = [_cut(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    soft = np.stack([masks.to_mask(_cut(mask, box), *size) for mask, box in zip(drawn, boxes, strict=True)])
    if task.shows_mask:  # trained with masks of zeros and ones
        soft = (soft >= 0.5).astype(np.float32)
        if not soft.any((1, 2, 3)).all():
            raise ValueError("mask is nowhere half white or more, and an inpainting model paints nothing else anew")
    return ImageInputs(
        task, *size, _strengths(given.images, count), pixels=_pixels(cut, size), mask=soft,
        latent_mask=np.stack([masks.latent_mask(mask, factor) for mask in soft]),
        depth=_depth(given.images.depth, count), sources=tuple(cut),
        under=tuple(_under(*one, size) for one in zip(pictures, drawn, boxes, strict=True)),
    )  # fmt: skip


# ---------------------------------------------------------------------- the parts of one


def _under(picture: Image.Image, mask: Image.Image, box: masks.Box | None, size: Sizes) -> Under:
    """What a result goes back into: the whole picture where a box was cut out, else the picture at that size."""
    if box is not None or picture.size == size[::-1]:
        return picture, mask, box
    resized = np.rint(255 * masks.to_mask(mask, *size)[..., 0]).astype(np.uint8)
    return picture.resize(size[::-1], Image.Resampling.LANCZOS), Image.fromarray(resized), None


def _cut(picture: Image.Image, box: masks.Box | None) -> Image.Image:
    return picture if box is None else picture.crop(box)


def _pixels(pictures: Sequence[Image.Image], size: Sizes) -> np.ndarray:
    return np.stack([read.to_pixels(one, *size) for one in pictures])


def _size(spec: ModelSpec, batch: Batch, count: int, natural: Callable[[], Sizes] | None = None) -> Sizes:
    """(height, width) of `count` pictures: as asked; else the picture's, `natural()`, or the model's own."""
    factor, usual = spec.vae.factor, (spec.side,) * 2
    if natural is not None and None in (batch.height, batch.width):
        usual = natural()
    height, width = (
        checks.check_size(getattr(batch, name), own, factor, name)
        for name, own in zip(("height", "width"), usual, strict=True)
    )
    checks.check_pixels(count, height, width)
    return height, width


def resized(spec: ModelSpec, given: Arguments, inputs: ImageInputs) -> str:
    """What to say of pictures whose own size no result can have, and which were made smaller for it; "" of others."""
    if inputs.pixels is None or inputs.sources is None:
        return ""
    if inputs.task.enlarges or given.images.mask_crop is not None:
        return ""
    for picture in inputs.sources:
        sides = ((given.batch.width, picture.width), (given.batch.height, picture.height))
        if any(asked is None and side % spec.vae.factor for asked, side in sides):
            return (
                f"image= is {picture.width} x {picture.height} and the result {inputs.width} x {inputs.height}: sides "
                f"are multiples of {spec.vae.factor}, and it was resized to the next smaller ones. Give width= and "
                "height= for another size"
            )
    return ""


def _natural(pictures: Sequence[Image.Image], multiple: int) -> Sizes:
    """The size that all pictures have. Raises ValueError where they differ."""
    sizes = {read.natural_size(picture, multiple) for picture in pictures}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"the pictures are of several sizes ({listed}); give height= and width= for all of them")
    return sizes.pop()


def _natural_of_map(control: ControlArguments, multiple: int) -> Sizes:
    """The size of the first map that a net looks at, as it is for pictures."""
    value = control.maps[0]
    first = value[0] if isinstance(value, list | tuple) and value else value
    height, width = control_map.read_map(first, "control[0]").shape[:2]
    return read.natural_size(Image.new("1", (width, height)), multiple)


def _strengths(given: ImageArguments, count: int) -> tuple[float | None, ...]:
    """Of each picture; at 1 nothing is left of it."""
    usual = STRENGTH if given.mask is None else 1.0
    value = usual if given.strength is None else given.strength
    listed = [check_strength(one) for one in checks.spread(value, count, "strength")]
    return tuple(None if one == 1 else one for one in listed)


def _depth(value: Any, count: int) -> tuple[Any, ...] | None:
    return None if value is None else tuple(read_each(value, count, "depth", depth.read_depth))


def _is_floats(value: Any) -> bool:
    """Whether something is an array of floats: latents, or a mask of their size."""
    return isinstance(value, np.ndarray | jax.Array) and bool(jnp.issubdtype(value.dtype, jnp.floating))
