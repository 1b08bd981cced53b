"""The guiders: what makes one prediction of a network's answers with and without a prompt.

Read in this order: `guider` (what one is, and what its branches are told), `cfg` (classifier-free guidance and its
rescaling), `composed` (several prompts, and regions), `pix2pix` (a prompt and a picture), `unguided`. How strongly they
act, by row and picture, is `diffusion.guidance`. To add a guider: write a file with a frozen dataclass, and name it in
GUIDERS.
"""

from dataclasses import asdict
from typing import Any

from sdjax.diffusion.guiders.cfg import ClassifierFree
from sdjax.diffusion.guiders.composed import ComposedPrompts
from sdjax.diffusion.guiders.guider import Guider
from sdjax.diffusion.guiders.pix2pix import InstructPix2Pix
from sdjax.diffusion.guiders.unguided import Unguided

# By the names that exported programs know them by.
GUIDERS: dict[str, Any] = {
    "unguided": Unguided,
    "classifier_free": ClassifierFree,
    "composed_prompts": ComposedPrompts,
    "instruct_pix2pix": InstructPix2Pix,
}


def to_json(guider: Any) -> dict[str, Any]:
    """A guider of GUIDERS as JSON has it. Raises ValueError for another."""
    for name, kind in GUIDERS.items():
        if type(guider) is kind:
            return {"guider": name, **asdict(guider)}
    raise ValueError(f"{guider!r} cannot be written: it is none of sdjax.diffusion.guiders.GUIDERS")


def from_json(written: dict[str, Any]) -> Guider:
    """The guider that `to_json` wrote."""
    return GUIDERS[written["guider"]](**{name: value for name, value in written.items() if name != "guider"})
