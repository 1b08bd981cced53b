"""Which published family a U-Net in the original layout belongs to, told by its tensors' names and shapes alone.

A `Shape` is what distinguishes the families: which blocks there are, how many transformer layers each has, and a few
widths. A preset's config says its own, a file's header shows its; the family is the preset whose shape the file has.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from sdjax.config import Config, UNetConfig, read_networks
from sdjax.config.presets import Preset
from sdjax.core.errors import CheckpointError
from sdjax.weights.files import Header
from sdjax.weights.ldm import UNET_PREFIX

_BLOCK = re.compile(r"(input_blocks\.\d+\.\d+|middle_block\.\d+|output_blocks\.\d+\.\d+)\.(.*)")
_LAYER = re.compile(r"transformer_blocks\.(\d{1,4})\..*")
# Of configs what a file's tensors say as well, and what changes no picture.
_TOLD = {"in_channels", "time_cond_proj_dim", "use_linear_projection"} | {
    "sample_size", "eos_token_id", "force_upcast", "upcast_attention"
}  # fmt: skip
_CONV_IN, _ADDED = "input_blocks.0.0.weight", "label_emb.0.0.weight"


@dataclass(frozen=True)
class Shape:
    """What tells one family's U-Net from another's.

    Attributes:
      blocks: transformer layers by block, 0 for a resnet, a halving or a doubling.
      width: channels of the first level. text: width of what it attends to.
      added: width of what SDXL adds to the time, None where nothing is.
      in_channels: 4; with a mask or a picture 8 or 9, depth 5.

    Whether transformers begin with a linear layer (SD 2.x, SDXL) or a 1x1 convolution tells nothing: tools write both.
    """

    blocks: Mapping[str, int]
    width: int
    text: int | None
    added: int | None
    in_channels: int

    def differences(self, other: "Shape") -> list[str]:
        """How a file's shape, this one, differs from a family's, in words; in_channels apart."""
        found = [
            f"{what} {mine} (there {theirs})"
            for what, mine, theirs in (
                ("width", self.width, other.width),
                ("text width", self.text, other.text),
                ("added conditioning", self.added, other.added),
            )
            if mine != theirs
        ]
        names = sorted({*self.blocks, *other.blocks}, key=_natural)
        blocks = [name for name in names if self.blocks.get(name) != other.blocks.get(name)]
        if blocks:
            name = blocks[0]
            found.append(
                f"{len(blocks)} blocks, as {name} with {_layers(self.blocks.get(name))} "
                f"(there {_layers(other.blocks.get(name))})"
            )
        return found


def shape_of_file(header: Header) -> Shape:
    """The shape of the U-Net that a file holds. Raises CheckpointError where the first convolution is missing."""
    own = {n.removeprefix(UNET_PREFIX): e.shape for n, e in header.tensors.items() if n.startswith(UNET_PREFIX)}
    first = own.get(_CONV_IN, ())
    if len(first) != 4 or 0 in first:
        raise CheckpointError(
            f"{header.path}: {UNET_PREFIX}{_CONV_IN} is missing or no convolution: the file is broken"
        )
    blocks: dict[str, int] = {}
    for name in own:
        if block := _BLOCK.fullmatch(name):
            layer = _LAYER.fullmatch(block[2])
            blocks[block[1]] = max(blocks.get(block[1], 0), int(layer[1]) + 1 if layer else 0)
    text = next((shape[-1] for name, shape in own.items() if name.endswith("attn2.to_k.weight") and shape), None)
    added = own[_ADDED][-1] if own.get(_ADDED) else None
    return Shape(blocks, first[0], text, added, first[1])


def shape_of_config(config: UNetConfig) -> Shape:
    """The shape of a config's U-Net, in the original layout's names (see `ldm`)."""
    added = config.addition_embed_type == "text_time"
    return Shape(
        dict(_blocks(config)),
        config.block_out_channels[0],
        config.cross_attention_dim,
        config.projection_class_embeddings_input_dim if added else None,
        config.in_channels,
    )


def candidates(shape: Shape, presets: Mapping[str, Preset], where: str) -> dict[str, Preset]:
    """The presets whose U-Net has this shape, those with as many input channels first where there are any.

    Raises CheckpointError, with the nearest one and what differs, where there is none.
    """
    shapes = {name: shape_of_config(UNetConfig.from_dict(preset.configs["unet"])) for name, preset in presets.items()}
    fitting = [name for name in presets if not shape.differences(shapes[name])]
    if not fitting:
        near = min(presets, key=lambda name: len(shape.differences(shapes[name])))
        raise CheckpointError(
            f"{where}: its U-Net is of no family that is known. Nearest is {presets[near].title}, but for: "
            f"{'; '.join(shape.differences(shapes[near]))}. Known: "
            f"{', '.join(dict.fromkeys(preset.title for preset in presets.values()))}"
        )
    exact = [name for name in fitting if shapes[name].in_channels == shape.in_channels]
    return {name: presets[name] for name in exact or fitting}


def unsaid(configs: Mapping[str, Config], presets: Mapping[str, Preset]) -> list[str]:
    """What a single file of these networks could not say, since it has no configs and is read by those of its family.

    That is every value by which they differ from the nearest family's, as "vae.scaling_factor 0.5 (there 0.18215)";
    none where the file would be opened as what it is. Such networks can be opened from a folder only.
    """
    return min((_differences(configs, preset) for preset in presets.values()), key=len)


def _differences(configs: Mapping[str, Config], preset: Preset) -> list[str]:
    theirs, found = read_networks(preset.configs), []
    for name in sorted({*configs, *theirs}):
        if name not in configs or name not in theirs:
            found.append(f"{name} ({preset.title} has {'none' if name in configs else 'one'})")
            continue
        for field in sorted(field.name for field in fields(configs[name])):
            mine, usual = getattr(configs[name], field), getattr(theirs[name], field, None)
            if field not in _TOLD and mine != usual:
                found.append(f"{name}.{field} {mine} (there {usual})")
    return found


def _blocks(config: UNetConfig) -> Iterator[tuple[str, int]]:
    """Transformer layers of each block, in the order of the original numbers."""
    yield "input_blocks.0.0", 0
    n = 1
    for i, count in enumerate(config.layers_per_block):
        for j in range(count):
            yield f"input_blocks.{n + j}.0", 0
            if config.down_block_types[i].startswith("CrossAttn"):
                yield f"input_blocks.{n + j}.1", config.transformer_layers[i][j]
        if i < config.levels - 1:
            yield f"input_blocks.{n + count}.0", 0
        n += count + 1
    if config.mid_block_type is not None:
        yield "middle_block.0", 0
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        yield "middle_block.1", config.transformer_layers[-1][0]
        yield "middle_block.2", 0
    n = 0
    for i, count in enumerate(reversed(config.layers_per_block)):
        crossed = config.up_block_types[i].startswith("CrossAttn")
        for j in range(count + 1):
            yield f"output_blocks.{n + j}.0", 0
            if crossed:
                yield f"output_blocks.{n + j}.1", config.up_transformer_layers[i][j]
        if i < config.levels - 1:
            yield f"output_blocks.{n + count}.{2 if crossed else 1}", 0
        n += count + 1


def _layers(count: int | None) -> str:
    return "nothing" if count is None else f"{count} transformer layers" if count else "a resnet"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(len(word), word) if word.isdigit() else (-1, word) for word in name.split(".")]
