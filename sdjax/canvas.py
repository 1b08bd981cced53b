"""What a run starts from besides text: pictures, masks, depth maps, and how much of them is to be made anew.

By what the U-Net takes beside the latents there are five kinds of model, and a picture is something else to each:

    channels          the picture is                                            published as
    c                 begun from, at the level that `strength` says             every text-to-image model
    c + mask + c      begun from, and shown without what the mask covers        inpainting
    c + c             shown, to be changed as the prompt says                   InstructPix2Pix
    c + 1             begun from, and shown as a depth map                      SD 2 depth
    c + 3             shown, noised, to be made larger                          x4 upscaler
    c, image encoder  what the prompt is to other models                        image variations

A mask (white is made anew) works with every model that begins from the picture: `diffusion.held` keeps the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdjax import checks, images
from sdjax.diffusion.part import check_strength

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion

TEXT, INPAINTING, PIX2PIX, UPSCALING, DEPTH, VARIATION = (
    "text-to-image", "inpainting", "pix2pix", "upscaling", "depth", "image variations",
)  # fmt: skip
KINDS = {0: TEXT, 1: DEPTH, 3: UPSCALING}  # by the U-Net's channels beside the latents; two more by the latents' own
BEGUN = (TEXT, INPAINTING, DEPTH)  # kinds that may begin from a picture
STRENGTH = 0.8  # of image-to-image where none is given; with a mask 1
NEEDS = {
    INPAINTING: "give image= and mask= (white is painted)",
    PIX2PIX: "give image=, the picture to change, and say in the prompt what is to change",
    UPSCALING: "give image=, the small picture",
    DEPTH: "give image=, or depth=, a map of what is near",
    VARIATION: "give image=, the picture to vary",
}
FOR = {
    "depth": "a depth model, as sdjax.load('shapes-depth') or Stable Diffusion 2 depth",
    "noise_level": "an upscaler, as stable-diffusion-x4-upscaler",
    "image_guidance_scale": "InstructPix2Pix",
    "mask": "a model that begins from the picture: any text-to-image, inpainting or depth model",
    "strength": "a model that begins from the picture: any text-to-image, inpainting or depth model",
}


@dataclass(frozen=True, eq=False)
class Canvas:
    """What b runs start from, sizes in pixels of the result.

    Attributes:
      height, width: of what the networks work on.
      strengths: of each picture; None starts from noise alone.
      pixels: the pictures, float32 `b H W 3` in [-1, 1] (an upscaler's: `b h w 3`); None where there are none, or
        where `latents` were given, float32 `b h w c`.
      mask: float32 `b H W 1`, 1 is made anew; None is everything. latent_mask: the same at the latents' size.
      depth: what `generate` was given as depth maps, one for each picture.
      under: what each result is pasted into, with its mask and the box that was cut out of it: (picture, mask, box).
      noise_level: of the upscaler.
      sources: the pictures themselves, for an image encoder or a depth estimator.
    """

    kind: str
    height: int
    width: int
    strengths: tuple[float | None, ...]
    pixels: np.ndarray | None = None
    latents: np.ndarray | None = None
    mask: np.ndarray | None = None
    latent_mask: np.ndarray | None = None
    depth: tuple[Any, ...] | None = None
    under: tuple[tuple[Image.Image, Image.Image, Any], ...] | None = None
    noise_level: int = 20
    sources: tuple[Image.Image, ...] | None = None

    @property
    def begun(self) -> bool:
        """Whether the runs begin from pictures."""
        return self.kind in BEGUN and (self.pixels is not None or self.latents is not None)

    @property
    def uses(self) -> tuple[str, ...]:
        """What noise a picture takes before its sampler draws any, in the order in which diffusers draws it."""
        if self.kind == UPSCALING:
            return ("low_res", "start")
        if not self.begun or self.pixels is None:
            return ("start",)
        # diffusers encodes the picture for a 9-channel U-Net only where it begins from it.
        encoded = self.kind != INPAINTING or any(strength is not None for strength in self.strengths)
        return (*(("encoding",) if encoded else ()), "start", *(("masked",) if self.mask is not None else ()))

    @property
    def hidden(self) -> np.ndarray:
        """The pictures with grey where the mask is: what an inpainting model is shown, `b H W 3`."""
        assert self.pixels is not None and self.mask is not None
        return np.stack([images.masked(*pair) for pair in zip(self.pixels, self.mask, strict=True)])

    def paste(self, pixels: np.ndarray) -> np.ndarray:
        """Results uint8 `b H W 3` put back where the mask left them out: there the picture stays to the last bit."""
        if self.under is None:
            return pixels
        pairs = zip(pixels, self.under, strict=True)
        return np.stack([np.asarray(images.paste(Image.fromarray(one), *under)) for one, under in pairs])

    @classmethod
    def read(cls, sd: "StableDiffusion", given: Mapping[str, Any], count: int) -> "Canvas":
        """From `generate`'s arguments, for `count` pictures. Raises ValueError, also for what the model cannot use."""
        kind = kind_of(sd)
        _check_wanted(sd, kind, given)
        if given["image"] is None:
            height, width = _sizes(sd, given, None)
            return cls(kind, height, width, (None,) * count, depth=_depth(given["depth"], count))
        made = _from_latents(sd, kind, given, count) if _is_latents(given["image"], sd) else None
        return made or _from_pictures(sd, kind, given, count)


def kind_of(sd: "StableDiffusion") -> str:
    """What the model is for, by its channels and encoders. Raises ValueError for channels that no model has."""
    latent, channels = sd.vae.latent_channels, sd.unet.in_channels
    kinds = {**KINDS, latent: PIX2PIX, latent + 1: INPAINTING}
    if channels - latent not in kinds:
        raise ValueError(f"{sd.name} has a U-Net of {channels} channels, {latent} of them latents: no known kind")
    return VARIATION if sd.image_encoder is not None and not sd.encoders else kinds[channels - latent]


def _check_wanted(sd: "StableDiffusion", kind: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError where the model needs what was not given, or was given what it cannot use."""
    has = {name for name in ("image", "mask", "strength", "depth", "noise_level", "image_guidance_scale")
           if given[name] is not None}  # fmt: skip
    usable = {"image"}
    usable |= {"mask", "strength"} if kind in BEGUN else set()
    usable |= {{DEPTH: "depth", UPSCALING: "noise_level", PIX2PIX: "image_guidance_scale"}.get(kind, "image")}
    for name in sorted(has - usable):
        raise ValueError(f"{sd.name} is a model for {kind} and has no use for {name}=; it is for {FOR[name]}")
    if kind in NEEDS and not has & {"image", *(("depth",) if kind == DEPTH else ())}:
        raise ValueError(f"{sd.name} is a model for {kind}: {NEEDS[kind]}")
    if kind == INPAINTING and "mask" not in has:
        raise ValueError(f"{sd.name} is a model for {kind}: {NEEDS[kind]}")
    for name in ("mask", "strength"):
        if name in has and "image" not in has:
            raise ValueError(f"{name}= belongs to a picture; give image= as well")
    if "mask" not in has and (given["mask_blur"] or given["mask_crop"] is not None):
        raise ValueError("mask_blur and mask_crop belong to a mask; give mask= as well")
    if "image" in has and given["denoising_start"] is not None:
        raise ValueError("image= begins a run and denoising_start= goes on with one; give one of them")


def _strengths(given: Mapping[str, Any], count: int) -> tuple[float | None, ...]:
    """Of each picture; at 1 nothing is left of it."""
    usual = STRENGTH if given["mask"] is None else 1.0
    value = usual if given["strength"] is None else given["strength"]
    listed = [check_strength(one) for one in checks.spread(value, count, "strength")]
    return tuple(None if one == 1 else one for one in listed)


def _is_latents(value: Any, sd: "StableDiffusion") -> bool:
    """Whether an image is given as latents: an array of floats, channels last."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and np.issubdtype(np.dtype(dtype), np.floating)


def _from_latents(sd: "StableDiffusion", kind: str, given: Mapping[str, Any], count: int) -> Canvas:
    if kind not in BEGUN or kind == INPAINTING:
        raise ValueError(f"{sd.name} is a model for {kind} and needs the picture itself; latents will not do")
    array, channels, factor = np.asarray(given["image"], np.float32), sd.vae.latent_channels, sd.vae.factor
    if array.ndim != 4 or array.shape[-1] != channels or array.shape[0] not in (1, count):
        raise ValueError(
            f"image as an array of floats is latents, [{count}, height, width, {channels}] for these pictures, not "
            f"{list(array.shape)}; give a picture as a PIL image, a path or an array of uint8"
        )
    if not np.isfinite(array).all():
        raise ValueError("image= holds latents that are NaN or infinite")
    height, width = _sizes(sd, given, (array.shape[1] * factor, array.shape[2] * factor))
    if (height, width) != (array.shape[1] * factor, array.shape[2] * factor):
        raise ValueError(f"image= holds latents of {array.shape[2] * factor} x {array.shape[1] * factor} pixels; leave "
                         "height and width out")  # fmt: skip
    latents = np.broadcast_to(array, (count, *array.shape[1:]))
    small = _latent_masks(given, count, (height // factor, width // factor), factor)
    return Canvas(
        kind, height, width, _strengths(given, count),
        latents=latents, latent_mask=small, depth=_depth(given["depth"], count),
    )  # fmt: skip


def _latent_masks(given: Mapping[str, Any], count: int, size: tuple[int, int], factor: int) -> np.ndarray | None:
    """Masks beside latents: arrays `b h w 1` of the latents' size, or pictures of the pixels'."""
    mask = given["mask"]
    if mask is None:
        return None
    if not hasattr(mask, "dtype") or not np.issubdtype(np.dtype(mask.dtype), np.floating):
        pictures = [images.read_mask(one) for one in each(mask, count, "mask")]
        soft = [images.to_mask(images.blurred(one, given["mask_blur"]), size[0] * factor, size[1] * factor)
                for one in pictures]  # fmt: skip
        return np.stack([images.latent_mask(one, factor) for one in soft])
    array = np.asarray(mask, np.float32)
    if array.ndim != 4 or array.shape[0] not in (1, count) or array.shape[1:] != (*size, 1):
        raise ValueError(f"mask as an array of floats must be [{count}, {size[0]}, {size[1]}, 1], not "
                         f"{list(array.shape)}")  # fmt: skip
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("mask as an array of floats must lie between 0 (kept) and 1 (made anew)")
    return np.broadcast_to(array, (count, *size, 1))


def _from_pictures(sd: "StableDiffusion", kind: str, given: Mapping[str, Any], count: int) -> Canvas:
    pictures = read_each(given["image"], count, "image", images.read_image)
    masks = None if given["mask"] is None else read_each(given["mask"], count, "mask", images.read_mask)
    crop = given["mask_crop"]
    natural = _natural(pictures, 1 if kind == UPSCALING else sd.vae.factor)
    if kind == UPSCALING:
        natural = (natural[0] * sd.vae.factor, natural[1] * sd.vae.factor)
    height, width = _sizes(sd, given, None if kind == VARIATION or crop is not None else natural)
    if kind == VARIATION:
        return Canvas(kind, height, width, (None,) * count, sources=tuple(pictures))
    if kind == UPSCALING:
        small = [images.to_pixels(one, height // sd.vae.factor, width // sd.vae.factor) for one in pictures]
        return Canvas(
            kind, height, width, (None,) * count,
            pixels=np.stack(small), noise_level=_noise_level(sd, given["noise_level"]),
        )  # fmt: skip
    boxes: list[Any] = [None] * count
    under, softs = None, None
    if masks is not None:
        masks = [images.blurred(mask, given["mask_blur"]) for mask in masks]
        for picture, mask in zip(pictures, masks, strict=True):
            images.check_mask(mask, picture, full=kind == INPAINTING)
        if crop is not None:
            boxes = [images.crop_box(mask, _padding(crop), height, width) for mask in masks]
        under = tuple(_under(p, m, box, height, width) for p, m, box in zip(pictures, masks, boxes, strict=True))
        softs = np.stack([images.to_mask(_cut(m, box), height, width) for m, box in zip(masks, boxes, strict=True)])
    cut = [_cut(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    if kind == INPAINTING and softs is not None:  # trained with masks of zeros and ones
        softs = (softs >= 0.5).astype(np.float32)
    return Canvas(
        kind, height, width,
        _strengths(given, count) if kind in BEGUN else (None,) * count,
        pixels=np.stack([images.to_pixels(one, height, width) for one in cut]),
        mask=softs,
        latent_mask=None if softs is None else np.stack([images.latent_mask(one, sd.vae.factor) for one in softs]),
        depth=_depth(given["depth"], count),
        under=under,
        sources=tuple(one.resize((width, height), Image.Resampling.LANCZOS) if one.size != (width, height) else one
                      for one in cut),
    )  # fmt: skip


def _under(picture: Image.Image, mask: Image.Image, box: Any, height: int, width: int) -> tuple[Any, Any, Any]:
    """What a result goes back into: the whole picture where a box was cut out, else the picture at that size."""
    if box is not None or picture.size == (width, height):
        return picture, mask, box
    return (
        picture.resize((width, height), Image.Resampling.LANCZOS),
        Image.fromarray(np.rint(255 * images.to_mask(mask, height, width)[..., 0]).astype(np.uint8)),
        None,
    )


def _cut(picture: Image.Image, box: Any) -> Image.Image:
    return picture if box is None else picture.crop(box)


def _padding(value: Any) -> int:
    return checks.check_count(value, 0, "mask_crop")


def _sizes(sd: "StableDiffusion", given: Mapping[str, Any], natural: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width): as asked, else the picture's, else the model's own."""
    native, factor = sd.unet.sample_size * sd.vae.factor, sd.vae.factor
    usual = natural or (native, native)
    return (
        checks.check_size(given["height"], usual[0], factor, "height"),
        checks.check_size(given["width"], usual[1], factor, "width"),
    )


def _natural(pictures: Sequence[Image.Image], multiple: int) -> tuple[int, int]:
    """The size that all pictures have. Raises ValueError where they differ."""
    sizes = {images.natural_size(picture, multiple) for picture in pictures}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"the pictures are of several sizes ({listed}); give height= and width= for all of them")
    return sizes.pop()


def _noise_level(sd: "StableDiffusion", value: Any) -> int:
    level = checks.check_count(20 if value is None else value, 0, "noise_level")
    most = sd.most_noise
    if level > most:
        raise ValueError(f"noise_level must be at most {most} for {sd.name}, not {level}")
    return level


def _depth(value: Any, count: int) -> tuple[Any, ...] | None:
    return None if value is None else tuple(each(value, count, "depth"))


def each(value: Any, count: int, name: str) -> list[Any]:
    """One picture for all of `count`, or a list, or an array `b H W c`, with one each. Raises ValueError."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim == 4 else [value]
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not listed:
        raise ValueError(f"{name} is an empty list: give one picture, or one for each of the {count}")
    return checks.spread(listed, count, name)


def read_each(value: Any, count: int, name: str, read: Any) -> list[Any]:
    """`each`, read; a picture that stands for several is read once."""
    listed = each(value, count, name)
    done: dict[int, Any] = {}
    for one in listed:
        if id(one) not in done:
            done[id(one)] = read(one, name)
    return [done[id(one)] for one in listed]
