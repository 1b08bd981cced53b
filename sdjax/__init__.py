"""sdjax: Stable Diffusion in pure-functional JAX.

    sd = sdjax.load()
    sd.generate("a red circle above a blue square").images[0].save("picture.png")

`load` opens a checkpoint, `load_adapter` a LoRA or another file that changes one, `load_controlnet` a net and
`load_image_prompt` an IP-Adapter that steer its pictures (`Control` and `ImagePrompt` say how), `plan` turns a sampler
on a schedule into a matrix, `stack_plans` gives every image of a batch its own, `sample` runs them in one `lax.scan`,
`dpm_adaptive` is the one sampler that is no matrix, `samplers` and `schedules` list what there is, `grow` makes room
around a picture, `read_settings` gives back what made one, `export` writes compiled programs. `parallel` is for many
devices and `train` for training: both are imported when they are first asked for.
"""

import importlib
from typing import Any

from sdjax.adapters.control import load_controlnet as load_controlnet
from sdjax.adapters.image_prompt import load_image_prompt as load_image_prompt
from sdjax.adapters.read import load_adapter as load_adapter
from sdjax.config import ConfigError as ConfigError
from sdjax.core import hints as _hints
from sdjax.core.errors import CheckpointError as CheckpointError
from sdjax.core.version import VERSION
from sdjax.diffusion.adaptive import dpm_adaptive as dpm_adaptive
from sdjax.diffusion.listing import samplers as samplers
from sdjax.diffusion.listing import schedules as schedules
from sdjax.diffusion.plan import Plan as Plan
from sdjax.diffusion.plan import plan as plan
from sdjax.diffusion.plan_batch import stack_plans as stack_plans
from sdjax.diffusion.scan import sample as sample
from sdjax.export import export as export
from sdjax.images.grow import grow as grow
from sdjax.load import load as load
from sdjax.pipeline import Output as Output
from sdjax.pipeline import StableDiffusion as StableDiffusion
from sdjax.request.control import Control as Control
from sdjax.request.control import ImagePrompt as ImagePrompt
from sdjax.request.stored_settings import read_settings as read_settings
from sdjax.sampling.preview import Preview as Preview
from sdjax.sampling.preview import notebook_callback as notebook_callback
from sdjax.sampling.trace import Step as Step

__version__ = VERSION

LATER = ("parallel", "train")  # modules that cost time or packages to import
__all__ = [
    "CheckpointError", "ConfigError", "Control", "ImagePrompt", "Output", "Plan", "Preview", "StableDiffusion", "Step",
    "dpm_adaptive", "export", "grow", "load", "load_adapter", "load_controlnet", "load_image_prompt",
    "notebook_callback", "parallel", "plan", "read_settings", "sample", "samplers", "schedules", "stack_plans", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    """What is meant to be used from here; the modules behind it can be imported by their names."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """A module of `LATER`. Raises AttributeError for other names, with what they are called here."""
    if name in LATER:
        return importlib.import_module(f"sdjax.{name}")
    told = "" if name.startswith("_") else f": {_hints.hint(name, _hints.PACKAGE, __all__)}"
    raise AttributeError(f"sdjax has no {name}{told}")
