"""What steers the pictures from beside the U-Net: nets that look at maps, and pictures that are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdjax.core.short import short
from sdjax.diffusion.progress import Run
from sdjax.model.spec import ModelSpec
from sdjax.request import checks
from sdjax.request.arguments.topic import NONE, UNUSUAL, Topic, argument
from sdjax.request.control import controls, image_prompts
from sdjax.request.control_inputs import Frame, Steering, controlled, shown
from sdjax.request.image_inputs import ImageInputs

GIVE = {
    "control": 'control=[(sdjax.load_controlnet("canny"), map)]',
    "image_prompt": 'image_prompt=[(sdjax.load_image_prompt("ip-adapter"), picture)]',
}


@dataclass(frozen=True, eq=False, repr=False)
class ControlArguments(Topic):
    """See `generate`. A file holds the nets' names, hashes and scales in words, which say what is to be given again."""

    control: Any = argument(None, str, NONE, told=UNUSUAL, each="picture", raw=True)
    image_prompt: Any = argument(None, str, NONE, told=UNUSUAL, each="picture", raw=True)

    def opened(self) -> "ControlArguments":
        """With every net read. Raises ValueError, also for what settings hold in place of one."""
        for name, value in self.items():
            words = value if isinstance(value, list) else [value]  # a tuple may be two paths
            if any(isinstance(one, str) for one in words):
                raise ValueError(
                    f"these settings are of pictures that were steered by {short(value)}: give the net and its picture "
                    f"again, as {GIVE[name]}"
                )
        return replace(self, control=controls(self.control), image_prompt=image_prompts(self.image_prompt))

    @property
    def maps(self) -> list[Any]:
        """Of an opened topic, what its nets look at; of a Union the first."""
        images = [one.image for one in self.control or ()]
        return [next(iter(one.values()), None) if isinstance(one, Mapping) else one for one in images]

    def steering(self, spec: ModelSpec, runs: Sequence[Run], preset: Any, inputs: ImageInputs) -> Steering | None:
        """Of an opened topic, what steers the pictures of these runs; None for nothing. Raises ValueError."""
        frame = Frame(spec, runs, checks.spread(preset, len(runs), "preset"), inputs)
        nets = tuple(controlled(one, i, frame) for i, one in enumerate(self.control))
        pictures = tuple(shown(one, i, frame) for i, one in enumerate(self.image_prompt))
        return Steering(nets, pictures) if nets or pictures else None

    def checked(self, steering: Steering | None, count: int) -> "ControlArguments":
        """In words, one for all pictures or one for each."""
        own = {}
        for name, which in (("control", "control"), ("image_prompt", "image_prompts")):
            said = [None if steering is None else steering.said(which, i) for i in range(count)]
            own[name] = said[0] if len(set(said)) == 1 else said
        return replace(self, **own)
