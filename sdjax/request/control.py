"""What steers pictures from beside the U-Net, as a user gives it.

    control=[(net, map), ..]                 a ControlNet or a T2I-Adapter, and the map that it looks at
    control=sdjax.Control(net, map, scale=0.8, end=0.5)
    image_prompt=[(adapter, picture), ..]    an IP-Adapter, and the picture that it shows

Each number is one for all pictures or a list with one for each; so are the maps. `steered` says what becomes of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdjax.adapters.control import ControlAdapter, load_controlnet
from sdjax.adapters.image_prompt import ImagePromptAdapter, load_image_prompt
from sdjax.core.short import short


@dataclass(frozen=True, eq=False)
class Control:
    """A network that looks at a map, and how it steers.

    Attributes:
      net: from `sdjax.load_controlnet`, or what that takes.
      image: the map: a picture as everywhere, whose values are taken as 0 to 1; or floats `H W c`, where -1 marks what
        is hidden (inpainting nets). A list has one for each picture. For a Union, {kind: map, ..}, as {"depth": map}.
      scale: how strongly it counts; 0 is not at all. An array [evaluations, pictures] says it for each evaluation.
      start, end: where in the run it acts, 0 its beginning and 1 its end. What counts as inside is as in diffusers, or
        as `preset="a1111"` or "comfy" of the call have it (see `steered.acting`).
      mode: "balanced"; "guess" (diffusers' guess_mode: for the prompt's answer alone, coarse layers more than fine
        ones); "prompt" and "control" (A1111: my prompt, or the control net, is more important). For a Union with one
        map also that map's kind, as "depth".
      weights: "soft", or one number for each of what the net adds, finest first and the middle's last.
      resize: where the map has another shape than the picture: "stretch", "crop" or "fill". None refuses that.
      mask: a picture that is white where the net acts.
    """

    net: Any
    image: Any
    scale: Any = 1.0
    start: Any = 0.0
    end: Any = 1.0
    mode: str | Sequence[str] | None = None
    weights: str | Sequence[float] | None = None
    resize: str | None = None
    mask: Any = None

    def opened(self) -> "Control":
        """The same with its net read. Raises ValueError for what is none."""
        if isinstance(self.net, str | os.PathLike):
            return replace(self, net=load_controlnet(self.net))
        if isinstance(self.net, ControlAdapter):
            return self
        raise ValueError(f"control takes what sdjax.load_controlnet gives, or a path, not {short(self.net)}")


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A picture that is shown in place of, or beside, the prompt.

    Attributes:
      adapter: from `sdjax.load_image_prompt`, or what that takes.
      image: the picture; a list has one for each picture that is made, a tuple several that are looked at together.
      scale: how strongly it counts, for all layers or by layer: see `adapters.image_scales`. A list has one for each
        picture that is made.
      start, end: where in the run it counts, as `Control` has it. mask: a picture that is white where it counts.
    """

    adapter: Any
    image: Any
    scale: Any = 1.0
    start: Any = 0.0
    end: Any = 1.0
    mask: Any = None

    def opened(self) -> "ImagePrompt":
        """The same with its adapter read. Raises ValueError for what is none."""
        if isinstance(self.adapter, str | os.PathLike):
            return replace(self, adapter=load_image_prompt(self.adapter))
        if isinstance(self.adapter, ImagePromptAdapter):
            return self
        raise ValueError(f"image_prompt takes what sdjax.load_image_prompt gives, or a path, not {short(self.adapter)}")


Controls = Sequence[Any] | Control | None
ImagePrompts = Sequence[Any] | ImagePrompt | None


def controls(value: Any) -> list[Control]:
    """Those that were given, opened. Raises ValueError."""
    return [one.opened() for one in _listed(value, Control, "control", "(net, map)")]


def image_prompts(value: Any) -> list[ImagePrompt]:
    """Those that were given, opened. Raises ValueError."""
    return [one.opened() for one in _listed(value, ImagePrompt, "image_prompt", "(adapter, picture)")]


def _listed(value: Any, kind: type, name: str, usual: str) -> list[Any]:
    """Each of a list as one `kind`: what is one already, or a tuple of two or three of its fields."""
    if value is None:
        return []
    pair = isinstance(value, tuple) and bool(value) and not isinstance(value[0], kind | tuple)
    listed = [value] if pair or isinstance(value, kind) else value
    if not isinstance(listed, list | tuple):
        raise ValueError(f"{name} must be a list of {usual}, not {short(value)}")
    made = []
    for one in listed:
        if isinstance(one, kind):
            made.append(one)
        elif isinstance(one, tuple) and len(one) in (2, 3):
            made.append(kind(*one))
        else:
            wanted = f"{usual}, {usual[:-1]}, scale) or sdjax.{kind.__name__}(..)"
            raise ValueError(f"{name}: each must be {wanted}, not {short(one)}")
    return made
