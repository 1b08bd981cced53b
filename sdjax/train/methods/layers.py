"""Layers: beside which kernels of a model an adapter learns, by a name that trainers share or by a pattern.

    attention       the four projections of every attention: diffusers' scripts (`to_q to_k to_v to_out.0`)
    transformers    every linear layer and 1 x 1 convolution of every transformer: kohya's default (`networks.lora`)
    convolutions    those, and all of the resnets, down- and upsamplers: kohya's with `conv_dim`, called LoCon

Source: kohya-ss/sd-scripts networks/lora.py. Anything else is a regular expression, found anywhere in a layer's path,
"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"; "" is every layer. Norms and embeddings have no kernel,
and no adapter of this kind.
"""

import re
from collections.abc import Mapping
from typing import Any

from sdjax.core.errors import unknown
from sdjax.train.methods import low_rank

PRESETS = {
    "attention": r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$",
    "transformers": r"\.(attentions|self_attn|mlp)\.",
    "convolutions": r"\.(attentions|self_attn|mlp|resnets|downsamplers|upsamplers)\.",
}
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

Layers = tuple[tuple[str, str], ...]
"""Of each component that takes part, by name, which of its layers: one of PRESETS or a regular expression."""

UNET_ATTENTION: Layers = (("unet", "attention"),)


def chosen(params: Mapping[str, Any], layers: Layers) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By component, the parameters of each layer that is chosen, by its path joined by dots.

    params: by component; arrays, or their shapes alone. Raises ValueError for a component that the model does not have
    or that is named twice, and where a choice is no regular expression or chooses nothing.
    """
    if not layers:
        raise ValueError(f"layers: no component is named; there are {', '.join(COMPONENTS)}")
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for component, choice in layers:
        known = [name for name in COMPONENTS if name in params]
        if component not in known:
            raise ValueError(unknown(f"layers: this model has no {component!r} with layers", component, known))
        if component in found:
            raise ValueError(f"layers: {component} is named twice; join its patterns by |")
        found[component] = _of_component(low_rank.layers(params[component]), component, choice)
    return found


def _of_component(layers: Mapping[str, Mapping[str, Any]], component: str, choice: str) -> dict[str, Mapping[str, Any]]:
    try:
        pattern = re.compile(PRESETS.get(choice, choice))
    except re.error as error:
        raise ValueError(f"layers: {choice!r} is no regular expression: {error}") from None
    picked = {path: layer for path, layer in layers.items() if pattern.search(f".{path}")}
    if not picked:
        said = f"layers: {choice!r} chooses none of {component}'s {len(layers)}, such as {next(iter(layers))}"
        raise ValueError(unknown(said, choice, tuple(PRESETS)))
    return picked
