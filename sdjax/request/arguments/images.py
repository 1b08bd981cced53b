"""What a run starts from besides text: pictures, masks, depth maps, and how much of them is made anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.core.limits import MOST_BLUR, MOST_SIDE
from sdjax.request import checks
from sdjax.request.arguments.topic import GIVEN, UNUSUAL, Flag, Topic, argument
from sdjax.request.image_inputs import ImageInputs

IMAGE_SCALE = 1.5  # of InstructPix2Pix (Brooks et al. 2023, arXiv:2211.09800, section 4)
Pictures = Any  # a PIL image, a path, an array; or a list of them


@dataclass(frozen=True, eq=False, repr=False)
class ImageArguments(Topic):
    """See `generate`; what becomes of them is in `read_images`."""

    mask_blur: float = argument(
        0, float, int, span=(0, MOST_BLUR), told=UNUSUAL,
        flag=Flag("Radius in pixels by which the mask is made soft.", least=0.0),
    )  # fmt: skip
    mask_crop: int | None = argument(
        None, int, span=(0, MOST_SIDE), told=UNUSUAL,
        flag=Flag("Work on the masked region and so many pixels around.", least=0),
    )  # fmt: skip
    image: Pictures = argument(None, str, told=GIVEN, each="picture", raw=True)
    mask: Pictures = argument(None, str, told=GIVEN, each="picture", raw=True)
    depth: Pictures = argument(None, str, told=GIVEN, each="picture", raw=True)
    regions: Sequence[tuple[str, Any]] | None = argument(None, str, told=GIVEN, raw=True)
    strength: float | Sequence[float] | None = argument(
        None, float, int, span=(0, 1), told=UNUSUAL, each="picture",
        flag=Flag("How much is made anew, 0 to 1; default 0.8, with a mask 1."),
    )  # fmt: skip
    image_guidance_scale: float | Sequence[float] | None = argument(
        None, float, int, span=(0, 10_000), told=UNUSUAL, each="picture",
        flag=Flag("Of InstructPix2Pix: pull of the picture; default 1.5."),
    )  # fmt: skip
    noise_level: int | None = argument(
        None, int, span=(0, 10_000), told=UNUSUAL,
        flag=Flag("Of an upscaler: noise on the small picture; default 20.", least=0),
    )  # fmt: skip

    def check_given(self) -> None:
        """Raises ValueError for what settings hold in place of a picture."""
        for name, declared in self.declarations().items():
            value = getattr(self, name)
            if declared.told == GIVEN and isinstance(value, str) and value == "given":
                raise ValueError(f"these settings are of a picture made from another: pass that as {name}=")

    def scales(self, count: int) -> np.ndarray:
        """How strongly the picture pulls that is to be changed, float32 [count]. Raises ValueError."""
        value = IMAGE_SCALE if self.image_guidance_scale is None else self.image_guidance_scale
        return checks.check_scales(value, count, "image_guidance_scale", least=1.0)

    def checked(self, inputs: ImageInputs, count: int) -> "ImageArguments":
        """With the numbers that the model makes use of, and no others. Raises ValueError."""
        strength = scale = None
        if inputs.begun:
            strengths = [1.0 if one is None else one for one in inputs.strengths]
            strength = checks.as_given(self.strength, strengths)
        if inputs.task.changes:
            scale = checks.as_given(self.image_guidance_scale, self.scales(count).tolist())
        level = inputs.noise_level if "low_res" in inputs.uses else None
        return replace(self, strength=strength, image_guidance_scale=scale, noise_level=level)
