"""Tasks: what a model is for, one object each. They differ in what a picture is to the model.

By what the U-Net takes beside the c channels of the latents there are six:

    channels          the picture is                                            published as
    c                 begun from, at the level that `strength` says             every text-to-image model
    c + mask + c      begun from, and shown without what the mask covers        inpainting
    c + c             shown, to be changed as the prompt says                   InstructPix2Pix
    c + 1             begun from, and shown as a depth map                      SD 2 depth
    c + 3             shown, noised, to be made larger                          x4 upscaler
    c, image encoder  what the prompt is to other models                        image variations

A new one is an object, and a line in TASKS; what is computed for it is in `sampling.run`.
"""

from collections.abc import Callable
from dataclasses import dataclass

BEGINS = "a model that begins from the picture: any text-to-image, inpainting or depth model"


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Attributes:
      name: as messages say it.
      beside: how many channels it takes beside so many of latents.
      begins: whether its runs may begin from a picture, and a mask may hold part of it.
      from_latents: whether a picture's latents will do in its place.
      needs: arguments of `generate` that it cannot do without. remedy: what to say where they are missing.
      own: an argument that no other task has, and which may stand for the picture. whose: the models that have it.
      shows_mask: whether the network is shown the mask, and what it leaves of the picture.
      changes: whether the network is shown the whole picture, which pulls by a scale of its own.
      enlarges: whether the picture is smaller than the result, shown with noise of a level that the network is told.
      maps_depth: whether the network is shown a depth map. varies: whether the picture stands in place of a text.
    """

    name: str
    beside: Callable[[int], int] = lambda latent: 0
    begins: bool = False
    from_latents: bool = False
    needs: tuple[str, ...] = ("image",)
    remedy: str = ""
    own: str = ""
    whose: str = ""
    shows_mask: bool = False
    changes: bool = False
    enlarges: bool = False
    maps_depth: bool = False
    varies: bool = False

    def usable(self) -> set[str]:
        """The arguments about pictures that it has a use for."""
        return {"image", *filter(None, [self.own]), *(("mask", "strength") if self.begins else ())}

    def has_needed(self, given: set[str]) -> bool:
        """Whether these arguments are all that it needs; a depth map stands for the picture that it is made of."""
        return {*self.needs} <= given or (self.maps_depth and self.own in given)


TEXT = Task("text-to-image", begins=True, from_latents=True, needs=())
INPAINTING = Task(
    "inpainting",
    lambda latent: latent + 1,
    begins=True,
    needs=("image", "mask"),
    remedy="give image= and mask= (white is painted)",
    shows_mask=True,
)
PIX2PIX = Task(
    "pix2pix",
    lambda latent: latent,
    remedy="give image=, the picture to change, and say in the prompt what is to change",
    own="image_guidance_scale",
    whose="InstructPix2Pix",
    changes=True,
)
UPSCALING = Task(
    "upscaling",
    lambda latent: 3,
    remedy="give image=, the small picture",
    own="noise_level",
    whose="an upscaler, as stable-diffusion-x4-upscaler",
    enlarges=True,
)
DEPTH = Task(
    "depth",
    lambda latent: 1,
    begins=True,
    from_latents=True,
    remedy="give image=, or depth=, a map of what is near",
    own="depth",
    whose="a depth model, as sdjax.load('shapes-depth') or Stable Diffusion 2 depth",
    maps_depth=True,
)
VARIATION = Task("image variations", remedy="give image=, the picture to vary", varies=True)
TASKS = (TEXT, DEPTH, UPSCALING, PIX2PIX, INPAINTING, VARIATION)
# Arguments about pictures that some tasks have no use for, with the models that have one.
FOR = {"mask": BEGINS, "strength": BEGINS} | {task.own: task.whose for task in TASKS if task.own}


def task_of(name: str, channels: int, latent: int, varies: bool) -> Task:
    """The task of a U-Net of so many channels, so many of them latents. Raises ValueError where there is none.

    name: of the model, for the message. varies: whether it has an image encoder in place of text encoders.
    """
    fitting = [task for task in TASKS if task.beside(latent) == channels - latent and not task.varies]
    if not fitting:
        raise ValueError(f"{name} has a U-Net of {channels} channels, {latent} of them latents: no known kind")
    return VARIATION if varies else fitting[-1]
