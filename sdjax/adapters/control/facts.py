"""A ControlNet's config, told from its tensors: for files that have none beside them.

Names and shapes tell the blocks, the widths and how many transformer layers there are. The rest (heads, epsilons, how
the time is embedded) is what the published family has whose first half it is, known by its levels' widths and by how
wide a text its attention takes in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.adapters.control.kind import DIFFUSERS, SGM, TASKS
from sdjax.adapters.families import PRESETS as FAMILIES
from sdjax.config.controlnet import ControlNetConfig
from sdjax.config.presets import PRESETS
from sdjax.core.errors import CheckpointError
from sdjax.core.limits import MOST_LEVELS
from sdjax.weights.files import Entry

_RESNETS = {
    DIFFUSERS: re.compile(r"down_blocks\.(?P<block>\d{1,3})\.resnets\.(?P<resnet>\d{1,3})\.conv2\.bias"),
    SGM: re.compile(r"input_blocks\.(?P<block>\d{1,3})\.0\.out_layers\.3\.bias"),
}
_LAYERS = {
    DIFFUSERS: re.compile(
        r"(down_blocks\.\d{1,3}|mid_block)\.attentions\.(\d{1,3})\.transformer_blocks\.(\d{1,3})\..*"
    ),
    SGM: re.compile(r"(input_blocks\.\d{1,3}|middle_block)\.1\.transformer_blocks\.(\d{1,3})\..*"),
}
_FIRST = {DIFFUSERS: "conv_in", SGM: "input_blocks.0.0"}
_ADDED = {DIFFUSERS: "add_embedding.linear_1", SGM: "label_emb.0.0"}
_HINTS = {DIFFUSERS: "controlnet_cond_embedding", SGM: "input_hint_block"}


@dataclass(frozen=True)
class Level:
    """One level on the way down: its channels, and of each of its resnets the transformer layers that follow it."""

    width: int
    layers: tuple[int, ...]


def config_of(tensors: Mapping[str, Entry], names: str, where: str) -> ControlNetConfig:
    """The config of a ControlNet of these tensors, by their names without a prefix; `names`: whose they are.

    Raises CheckpointError where it is the half of no published U-Net, or too much is missing to tell.
    """
    levels = _levels(tensors, names)
    if not levels or _inputs(tensors, _FIRST[names]) is None:
        raise CheckpointError(f"{where} has no {_FIRST[names]} or no resnets on the way down: it is damaged")
    text = next((_inputs(tensors, name) for one in tensors if (name := _to_k(one))), None)
    family = _family(levels, text, where)
    told = _told(tensors, names, levels, text)
    config = {key: value for key, value in family.items() if not key.startswith(("reverse_", "up_", "_class"))}
    return ControlNetConfig.from_dict(config | told, where)


def _told(tensors: Mapping[str, Entry], names: str, levels: list[Level], text: int | None) -> dict[str, Any]:
    """The keys of config.json that the tensors tell."""
    middle = _layers(tensors, names).get("mid_block", {}).get(0, 0)
    crossed = [max(level.layers) > 0 for level in levels]
    layers = [list(level.layers) if many else max(middle, 1) for level, many in zip(levels, crossed, strict=True)]
    seen, *hints = _hint_widths(tensors, names) or [3]
    told: dict[str, Any] = {
        "in_channels": _inputs(tensors, _FIRST[names]),
        "block_out_channels": [level.width for level in levels],
        "layers_per_block": [len(level.layers) for level in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if many else "DownBlock2D" for many in crossed],
        "transformer_layers_per_block": layers,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "conditioning_channels": seen,
        "conditioning_embedding_out_channels": hints,
    }
    if text is not None:
        told["cross_attention_dim"] = text
    if (added := _inputs(tensors, _ADDED[names])) is not None:
        told["projection_class_embeddings_input_dim"] = added
    return told | union_of(tensors)


def union_of(tensors: Mapping[str, Entry]) -> dict[str, Any]:
    """What a Union's tensors say of it; nothing for another ControlNet."""
    if TASKS not in tensors or len(tensors[TASKS].shape) != 2:
        return {}
    types, width = tensors[TASKS].shape
    layers = {found[1] for name in tensors if (found := re.fullmatch(r"transformer_layes\.(\d{1,3})\..*", name))}
    shapes = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_layer": len(layers)}
    return {"num_control_type": types, **shapes}


def _family(levels: list[Level], text: int | None, where: str) -> Mapping[str, Any]:
    """The U-Net's config of the published family."""
    widths = [level.width for level in levels]
    for preset in FAMILIES.values():
        config = PRESETS[preset].configs["unet"]
        if config["block_out_channels"] == widths and text in (config["cross_attention_dim"], None):
            return config
    told = "no text" if text is None else f"a text {text} wide"
    raise CheckpointError(
        f"{where} is a ControlNet for no published family: its channels are {', '.join(map(str, widths))}, and it takes "
        f"in {told}. Put it in a folder with its config.json, which says what its tensors do not"
    )


def _levels(tensors: Mapping[str, Entry], names: str) -> list[Level]:
    """The levels on the way down, the finest first."""
    found = {
        (int(match["block"]), int(match.groupdict().get("resnet") or 0)): entry.shape[0]
        for name, entry in tensors.items()
        if (match := _RESNETS[names].fullmatch(name)) and len(entry.shape) == 1
    }
    layers = _layers(tensors, names)
    levels: dict[int, list[tuple[int, int]]] = {}
    for block, resnet in sorted(found):
        # The authors number all blocks in one row: what halves stands between two levels, and is no resnet.
        level = block if names == DIFFUSERS else sum(f"input_blocks.{n}.0.op.bias" in tensors for n in range(block))
        own = layers.get(f"down_blocks.{block}" if names == DIFFUSERS else f"input_blocks.{block}", {})
        levels.setdefault(level, []).append((found[block, resnet], own.get(resnet, 0)))
    if sorted(levels) != list(range(len(levels))) or len(levels) > MOST_LEVELS:
        return []
    return [Level(levels[i][0][0], tuple(count for _, count in levels[i])) for i in range(len(levels))]


def _layers(tensors: Mapping[str, Entry], names: str) -> dict[str, dict[int, int]]:
    """Of each block, by its name, how many transformer layers stand behind each of its resnets, by number."""
    found: dict[str, dict[int, int]] = {}
    for name in tensors:
        if match := _LAYERS[names].fullmatch(name):
            block = "mid_block" if match[1] == "middle_block" else match[1]
            resnet = int(match[2]) if names == DIFFUSERS else 0
            own = found.setdefault(block, {})
            own[resnet] = max(own.get(resnet, 0), int(match[match.lastindex or 0]) + 1)
    return found


def _hint_widths(tensors: Mapping[str, Entry], names: str) -> list[int]:
    """The channels of the picture, and of its convolutions but the last: at full size, then as each halving gives."""
    prefix = _HINTS[names]
    first = f"{prefix}.conv_in" if names == DIFFUSERS else f"{prefix}.0"
    # Convolutions come in pairs, of which the second halves; the authors count the activations between them too.
    halving = (
        f"{prefix}.blocks.{2 * i + 1}" if names == DIFFUSERS else f"{prefix}.{4 * i + 4}" for i in range(MOST_LEVELS)
    )
    found = [_inputs(tensors, first), _outputs(tensors, first), *(_outputs(tensors, name) for name in halving)]
    return [one for one in found if one is not None]


def _to_k(name: str) -> str | None:
    """The layer from text to keys that a tensor belongs to."""
    found = re.fullmatch(r"(.*attn2\.to_k)\.(weight|down)", name)
    return found and found[1]


def _inputs(tensors: Mapping[str, Entry], layer: str) -> int | None:
    """How many channels a layer takes in; of a Control-LoRA its second factor tells."""
    shape = next((tensors[name].shape for end in ("weight", "down") if (name := f"{layer}.{end}") in tensors), ())
    return shape[1] if len(shape) in (2, 4) else None


def _outputs(tensors: Mapping[str, Entry], layer: str) -> int | None:
    bias = tensors.get(f"{layer}.bias")
    return bias.shape[0] if bias and len(bias.shape) == 1 else None
