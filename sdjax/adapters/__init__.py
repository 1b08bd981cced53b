"""Adapters: files that change a model: LoRA and its relatives, textual inversions, hypernetworks, image prompts.

    load_adapter(file)                  `read`: what is in a file, told from its tensors
    merge(params, adapters)             into a model's parameters
    combine, extract, resize            sums of adapters, what lies between two models, fewer ranks
    generate(adapters=[..])             worn beside them, each picture its own (`slots`)
    load_image_prompt(file)             an IP-Adapter, and the image encoder that it looks through (`image_prompt`)

Read `kinds.delta` (what a kind does to a parameter), `adapter` (a file of them), `names` and `spelling` (how files name
modules), `bind` (whose parameters are meant), `read` and `save`; then `merging`, `slots` (beside the kernels), `scales`
and `blocks` (how strongly), `algebra` and `reduce`; then `textual_inversion` and `hypernetwork`, files of other kinds.
Of an IP-Adapter read `image_prompt`, `image_prompt_names`, `image_encoder`, and `image_scales` (how strongly where).
"""

from sdjax.adapters.adapter import Adapter as Adapter
from sdjax.adapters.algebra import combine as combine
from sdjax.adapters.hypernetwork import Hypernetwork as Hypernetwork
from sdjax.adapters.image_prompt import ImagePromptAdapter as ImagePromptAdapter
from sdjax.adapters.image_prompt import load_image_prompt as load_image_prompt
from sdjax.adapters.merging import merge as merge
from sdjax.adapters.read import load_adapter as load_adapter
from sdjax.adapters.reduce import extract as extract
from sdjax.adapters.reduce import resize as resize
from sdjax.adapters.textual_inversion import TextualInversion as TextualInversion
