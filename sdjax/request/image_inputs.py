"""What a run starts from besides text: pictures, masks, depth maps, and how much of them is to be made anew.

What a picture is to a model, its task says (`model.tasks`). A mask (white is made anew) works with every model that
begins from the picture: `diffusion.inpaint` keeps the rest. How all this is made of what `generate` was given is in
`read_images`.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdjax.core import short
from sdjax.diffusion.noise import Level
from sdjax.images import masks
from sdjax.model.tasks import Task

# A picture that a result is pasted into, its mask, and the box (left, top, right, bottom) that was worked on, or None.
Under = tuple[Image.Image, Image.Image, masks.Box | None]


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What b runs start from. Sizes are in pixels of what the networks work on.

    Attributes:
      task: of the model. height, width: of the result, but for what it is pasted into.
      strengths: of each picture; None starts from noise alone.
      pixels: the pictures, float32 `b H W 3` in [-1, 1] (an upscaler's small ones: `b h w 3`); None where there are
        none, or where `latents` were given, float32 `b h w c`.
      mask: float32 `b H W 1`, 1 is made anew; None is everything. latent_mask: the same at the latents' size.
      depth: maps that were given, float32 `H W` of any size, one for each picture.
      sources: the pictures themselves, for an image encoder or a depth estimator.
      under: what each result goes back into.
      noise_level: of the upscaler, and `low_res`, the level that its small pictures are brought to.
    """

    task: Task
    height: int
    width: int
    strengths: tuple[float | None, ...]
    pixels: np.ndarray | None = None
    latents: np.ndarray | None = None
    mask: np.ndarray | None = None
    latent_mask: np.ndarray | None = None
    depth: tuple[np.ndarray, ...] | None = None
    sources: tuple[Image.Image, ...] | None = None
    under: tuple[Under, ...] | None = None
    noise_level: int = 20
    low_res: Level | None = None

    __repr__ = short.fields

    @property
    def begun(self) -> bool:
        """Whether the runs begin from pictures."""
        return self.task.begins and (self.pixels is not None or self.latents is not None)

    @property
    def uses(self) -> tuple[str, ...]:
        """What noise a picture takes before its sampler draws any, in the order in which diffusers draws it."""
        if self.task.enlarges:
            return ("low_res", "start")
        if not self.begun or self.pixels is None:
            return ("start",)
        # diffusers encodes the picture for a 9-channel U-Net only where it begins from it.
        encoded = not self.task.shows_mask or any(strength is not None for strength in self.strengths)
        return (*(("encoding",) if encoded else ()), "start", *(("masked",) if self.mask is not None else ()))

    @property
    def hidden(self) -> np.ndarray:
        """The pictures with grey where the mask is: what an inpainting model is shown, `b H W 3`."""
        assert self.pixels is not None and self.mask is not None
        return np.stack([masks.masked(*pair) for pair in zip(self.pixels, self.mask, strict=True)])

    def paste(self, pixels: np.ndarray) -> np.ndarray:
        """Results uint8 `b H W 3` put back where the mask left them out: there the picture stays to the last bit."""
        if self.under is None:
            return pixels
        pairs = zip(pixels, self.under, strict=True)
        return np.stack([np.asarray(masks.paste(Image.fromarray(one), *under)) for one, under in pairs])
