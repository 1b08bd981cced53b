"""sdjax: Stable Diffusion in pure-functional JAX.

    sd = sdjax.load()
    sd.generate("a red circle above a blue square").images[0].save("picture.png")

`load` opens a checkpoint, `plan` turns a sampler on a schedule into a matrix, `stack_plans` gives every image of a
batch its own, `sample` runs them in one `lax.scan`, `dpm_adaptive` is the one sampler that is no matrix,
`grow` makes room around a picture, `read_settings` gives back what made one, `export` writes compiled programs.
"""

from sdjax.canvas import grow as grow
from sdjax.config import ConfigError as ConfigError
from sdjax.diffusion.adaptive import dpm_adaptive as dpm_adaptive
from sdjax.diffusion.lanes import stack_plans as stack_plans
from sdjax.diffusion.plan import Plan as Plan
from sdjax.diffusion.plan import plan as plan
from sdjax.diffusion.scan import sample as sample
from sdjax.export import export as export
from sdjax.opening import load as load
from sdjax.picture import read_settings as read_settings
from sdjax.pipeline import Output as Output
from sdjax.pipeline import StableDiffusion as StableDiffusion
from sdjax.preview import Preview as Preview
from sdjax.preview import notebook_callback as notebook_callback
from sdjax.steps import Step as Step
from sdjax.weights.names import CheckpointError as CheckpointError

__version__ = "0.1.0"
