"""Small checkpoints of every published family: the real blocks and layers, narrow.

Nothing here knows the original layout's names; the tests say what they are.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from sdjax.config import read_networks
from sdjax.config.presets import PRESETS, Preset
from sdjax.nn.shapes import expected_params
from sdjax.weights import default_layout
from tests.checkpoints import random_params

# A width of the published configs, and ours in its place; those that are sums are ours' sums.
TEXT = {768: 24, 1024: 32, 1280: 40, 2048: 64, 2816: 40 + 6 * 8, 2560: 40 + 5 * 8}
LAYERS, VOCABULARY, TOKENS = 3, 60, 12


def small(preset: Preset) -> Preset:
    """A preset with all its blocks and few channels."""
    unet = dict(preset.configs["unet"])
    unet |= {
        "block_out_channels": [width // 20 // 8 * 8 for width in unet["block_out_channels"]],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT[unet["cross_attention_dim"]],
    }
    if unet.get("addition_embed_type"):
        unet["addition_time_embed_dim"] = 8
        width = unet["projection_class_embeddings_input_dim"]
        unet["projection_class_embeddings_input_dim"] = TEXT[width]
    levels = len(preset.configs["vae"]["block_out_channels"])
    vae = dict(preset.configs["vae"]) | {"block_out_channels": [8, 8, 16, 16][:levels], "norm_num_groups": 4}
    text = {name: small_text(config) for name, config in preset.configs.items() if name.startswith("text")}
    configs: dict[str, Any] = {**text, "unet": unet, "vae": vae}
    return replace(preset, configs=configs)


def small_text(config: Any) -> dict[str, Any]:
    """A narrow text encoder of three layers; of two where the published one leaves out its last."""
    width = TEXT[config["hidden_size"]]
    return config | {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "max_position_embeddings": TOKENS,
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS - (config["num_hidden_layers"] == 23),
        "projection_dim": width,
        "vocab_size": VOCABULARY,
    }


SMALL = {name: small(preset) for name, preset in PRESETS.items()}


def expected(configs: Any) -> dict[str, Any]:
    """The shapes of all parameters, by component."""
    return {name: _expected(name, json.dumps(config)) for name, config in configs.items()}


@cache
def _expected(name: str, config: str) -> Any:
    """Tracing SDXL's U-Net takes seconds, so it is done once."""
    return expected_params(read_networks({name: json.loads(config)}))[name]


def components(preset: Preset, dtype: Any = np.float32, seed: int = 0) -> dict[str, Any]:
    """(random parameters, layout) by component."""
    trees = {name: random_params(tree, dtype, seed) for name, tree in expected(preset.configs).items()}
    return {name: (tree, default_layout(tree, preset.configs[name])) for name, tree in trees.items()}
