"""Methods: what of a model learns, and how it is kept: one file each.

Read `method` first: what a method says. Then `full`, where a network's own parameters learn, chosen by `rules`; and
those in which something small beside them does: beside the kernels that `layers` names, by what they all share
(`beside`), `lora`, `dora`, `loha`, `lokr`; in captions, `textual_inversion`; before keys and values, `hypernetwork`.
Beside the U-Net learn `controlnet` and `image_prompt`, each with the loss that sees it; networks of their own are `vae`
and `clip`. Text encoders learn by `full` too.
"""

from sdjax.train.methods.clip import ClipTraining as ClipTraining
from sdjax.train.methods.controlnet import ControlDenoising as ControlDenoising
from sdjax.train.methods.controlnet import ControlNetTraining as ControlNetTraining
from sdjax.train.methods.dora import DoRA as DoRA
from sdjax.train.methods.full import Full as Full
from sdjax.train.methods.hypernetwork import Hypernetwork as Hypernetwork
from sdjax.train.methods.image_prompt import ImagePromptDenoising as ImagePromptDenoising
from sdjax.train.methods.image_prompt import ImagePromptTraining as ImagePromptTraining
from sdjax.train.methods.loha import LoHa as LoHa
from sdjax.train.methods.lokr import LoKr as LoKr
from sdjax.train.methods.lora import LoRA as LoRA
from sdjax.train.methods.textual_inversion import TextualInversion as TextualInversion
from sdjax.train.methods.vae import VaeTraining as VaeTraining
