"""The text encoder's names in the original layout: OpenAI's CLIP as transformers has it, or OpenCLIP's own.

Stable Diffusion 1.x and SDXL's first encoder are transformers' module, one folder deeper. Stable Diffusion 2.x, the
refiner and SDXL's second encoder are OpenCLIP's (https://github.com/mlfoundations/open_clip, transformer.py), where

    (1)   attn.in_proj_weight  [3d, d]  =  q_proj, k_proj, v_proj  one below the other; the same for the biases
    (2)   text_projection      [d, p]   is used as x @ W, as our kernels are

Stable Diffusion 2 takes the states of the last layer but one: published folders therefore leave the last layer out,
original files have it still.
"""

import re
from collections.abc import Iterable

from sdjax.core import tree
from sdjax.weights import names
from sdjax.weights.names import Place

HUGGING, OPEN = "transformer.", "model."  # after an encoder's prefix

_EMBEDDER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


# All that a text encoder has, as transformers calls it and as OpenCLIP does.
_HUGGING_INSIDE = r"embeddings\.(?:token|position)_embedding\.weight|encoder\.layers\.\d+\..+|final_layer_norm\..+"
_OPEN_INSIDE = r"(?:token_embedding|ln_final)\..+|positional_embedding|transformer\.resblocks\.\d+\..+|text_projection"
_NAME = re.compile(
    rf"((?:.*?\.)??)(?:(?:(?:transformer|model)\.)?(?:text_model\.)?(?:({_HUGGING_INSIDE})|(text_projection\.weight))"
    rf"|(?:model\.)?({_OPEN_INSIDE}))"
)


def spelled(name: str) -> tuple[str, str] | None:
    """A text encoder's tensor as (what stands before the encoder's names, its own name); None for others.

    The own name is the usual one of its dialect: `transformer.text_model.` or `model.` before what both dialects add to
    or leave out. A projection is told by its name and not by its shape, since it is square: `text_projection.weight`
    is a linear layer's, meant for W @ x, and `text_projection` for x @ W.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    above, hugging, projection, own = found.groups()
    if hugging is not None:
        return above, f"{HUGGING}text_model.{hugging}"
    return above, f"{HUGGING}{projection}" if projection is not None else f"{OPEN}{own}"


def is_open(own: str) -> bool:
    """Whether an own name, as `spelled` gives it, is of OpenCLIP's dialect."""
    return own.startswith(OPEN)


def places(path: tree.Path, shape: tree.Shape, prefix: str, hidden_act: str) -> list[Place]:
    """Where the parameter at `path` may lie, under an encoder's prefix; the usual place first.

    That is OpenCLIP's where the network is: its authors took the exact GELU, OpenAI's the quick one.
    """
    hugging = [Place(f"{prefix}{HUGGING}{one.name}", one.shapes) for one in names.places(path, shape)]
    own = _open(path, shape, f"{prefix}{OPEN}")
    return [*hugging, own] if hidden_act == "quick_gelu" else [own, *hugging]


def _open(path: tree.Path, shape: tree.Shape, prefix: str) -> Place:
    name = names.tensor_name(path)
    shapes = tuple(names.file_shapes(path, shape))
    found = _EMBEDDER.fullmatch(name)
    if found is None:
        return Place(prefix + _OUTSIDE[name], (shape,), as_ours=True)
    layer, module, leaf = found.groups()
    block = f"{prefix}transformer.resblocks.{layer}"
    if module in _LAYER:
        return Place(f"{block}.{_LAYER[module]}.{leaf}", shapes)
    which = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(module)
    fused = tuple((3 * rows, *rest) for rows, *rest in shapes)
    return Place(f"{block}.attn.in_proj_{leaf}", fused, part=(which, 3))


def unused(tensors: Iterable[str], prefix: str, layers: int, projects: bool, hidden_act: str) -> list[str]:
    """An encoder's tensors that its network does not need: a last layer more, a projection that is not used."""
    last = [f"{prefix}{OPEN}transformer.resblocks.{layers}."]
    if hidden_act != "quick_gelu":
        last.append(f"{prefix}{HUGGING}text_model.encoder.layers.{layers}.")
    # OpenAI's projection comes with the whole CLIP model, from which some tools save.
    projections = (f"{prefix}{OPEN}text_projection", f"{prefix}{HUGGING}text_projection.weight")
    if projects:
        return []
    return [name for name in tensors if name.startswith(tuple(last)) or name in projections]
