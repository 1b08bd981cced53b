"""The modules that a Stable Diffusion model can have, as files name them: all words of a path joined by "_".

Two vocabularies name the same U-Net: diffusers' levels and the original, SGM's, one row of blocks (`weights.ldm`). No
name belongs to both, and within each no two paths become one name, so that a name alone says which module is meant.
Text encoders are named as transformers names them. With every number that counts something written as #, a few hundred
names are all that there are: they tell a misspelling before any model is at hand. Which numbers a model has, only its
parameters tell (`table`).
"""

import re
from itertools import product
from typing import NamedTuple

from sdjax.core.errors import closest


class Module(NamedTuple):
    """A module as a file names it: which part of a model, and the words of its name joined by "_"."""

    part: str
    name: str


_RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_SGM_RESNET = ("in_layers_0", "in_layers_2", "emb_layers_1", "out_layers_0", "out_layers_3", "skip_connection")
_INSIDE = (
    "norm1", "norm2", "norm3", "ff_net_0_proj", "ff_net_2",
    *(f"{attn}_{word}" for attn, word in product(("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out_0"))),
)  # fmt: skip
_TRANSFORMER = ("norm", "proj_in", "proj_out", *(f"transformer_blocks_#_{word}" for word in _INSIDE))
_LAYER = (
    "layer_norm1", "layer_norm2", "mlp_fc1", "mlp_fc2", *(f"self_attn_{word}_proj" for word in ("q", "k", "v", "out")),
)  # fmt: skip
_TEXT = (
    "embeddings_token_embedding", "embeddings_position_embedding", "final_layer_norm",
    *(f"encoder_layers_#_{word}" for word in _LAYER),
)  # fmt: skip

DIFFUSERS = frozenset(
    {"conv_in", "conv_out", "conv_norm_out", "class_embedding", "time_embedding_cond_proj"}
    | {f"{top}_embedding_linear_{n}" for top in ("time", "add", "class") for n in (1, 2)}
    | {f"{level}_resnets_#_{word}" for level in ("down_blocks_#", "mid_block", "up_blocks_#") for word in _RESNET}
    | {
        f"{level}_attentions_#_{word}"
        for level in ("down_blocks_#", "mid_block", "up_blocks_#")
        for word in _TRANSFORMER
    }
    | {"down_blocks_#_downsamplers_#_conv", "up_blocks_#_upsamplers_#_conv"}
)
SGM = frozenset(
    {"input_blocks_#_#", "input_blocks_#_#_op", "output_blocks_#_#_conv", "label_emb", "out_0", "out_2"}
    | {"time_embed_0", "time_embed_2", "time_embed_cond_proj", "label_emb_0_0", "label_emb_0_2"}
    | {
        f"{block}_{word}"
        for block in ("input_blocks_#_#", "middle_block_#", "output_blocks_#_#")
        for word in (*_SGM_RESNET, *_TRANSFORMER)
    }
)
TEXT = frozenset({"text_projection"} | {f"{before}{word}" for before in ("text_model_", "") for word in _TEXT})

_COUNTED = re.compile(
    r"(?<![a-z])(input_blocks|output_blocks|middle_block|down_blocks|up_blocks|attentions|resnets|transformer_blocks"
    r"|downsamplers|upsamplers|encoder_layers)((?:_[0-9]{1,4}){1,2})(?=_|$)"
)
_DIGITS = re.compile(r"(?<=_)[0-9]+")


def pattern(name: str) -> str:
    """The name with a # for every number that counts blocks, layers or modules of a kind."""
    return _COUNTED.sub(lambda found: found[1] + _DIGITS.sub("#", found[2]), name)


def is_text(name: str) -> bool:
    """Whether a module's name is one of a text encoder's."""
    return pattern(name) in TEXT


def blocks(name: str) -> str | None:
    """Which of the U-Net's two vocabularies a name is of, "diffusers" or "sgm"; None where neither has it."""
    found = pattern(name)
    return "diffusers" if found in DIFFUSERS else "sgm" if found in SGM else None


def nearest_module(name: str) -> str | None:
    """The name most like this one that a model could have, with its numbers; None where none is near."""
    if len(name) > 200:
        return None
    near = closest(pattern(name), DIFFUSERS | SGM | TEXT, cutoff=0.7)
    numbers = iter(_DIGITS.findall(" ".join(found[2] for found in _COUNTED.finditer(name))))
    return re.sub("#", lambda _: next(numbers, "0"), near[0]) if near else None
