"""The original layout's names of the U-Net and the autoencoder, from their configs.

The authors' code (https://github.com/CompVis/stable-diffusion, ldm/modules/diffusionmodules/openaimodel.py and
model.py) numbers a U-Net's blocks in one row on the way down, and in one on the way up; diffusers numbers levels, and
within each its resnets and transformers. With two resnets a level:

    (1)   input_blocks    0: conv_in   1 2: level 0   3: halving   4 5: level 1   6: halving ...
    (2)   output_blocks   0 1 2: coarsest level, the last of which ends with the doubling   3 4 5 ...

    of one block    .0 resnet or halving   .1 transformer, where the level has them   .1 or .2 doubling

Inside the transformers both have the same names. The autoencoder differs in words only, but counts the decoder's
levels from the finest, where diffusers counts from the coarsest; and its attention's projections are 1x1 convolutions.
"""

import re
from collections.abc import Sequence

from sdjax.config import UNetConfig, VaeConfig
from sdjax.core import tree
from sdjax.weights import names
from sdjax.weights.names import Place

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
Modules = dict[str, str]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OTHER_WORDS = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "to_out": "proj_out"}
_VAE_PROJECTION = re.compile(r".*\.attn_1\.(q|k|v|proj_out)\.weight")
# An autoencoder's tensors, by the names inside it; those of the authors and those of diffusers.
_VAE = re.compile(
    r"(?:.*\.)?((?:(?:encoder|decoder)\.(?:(?:down|up|mid|down_blocks|up_blocks|mid_block)\.[\w.]+"
    r"|(?:conv_in|conv_out|norm_out|conv_norm_out)\.(?:weight|bias))|(?:post_)?quant_conv\.(?:weight|bias)))"
)


def unet_modules(config: UNetConfig) -> Modules:
    """The original name of every module by diffusers' name."""
    return unet_words(config.layers_per_block, [kind.startswith("CrossAttn") for kind in config.up_block_types])


def unet_words(resnets: Sequence[int], attends: Sequence[bool]) -> Modules:
    """The same, from the number of resnets of each level on the way down, and whether each level attends on the way up.

    The way up has one resnet more on each level, and the levels the other way round.
    """
    found = dict(_UNET) | _resnet("mid_block.resnets.0", "middle_block.0")
    found |= _resnet("mid_block.resnets.1", "middle_block.2")
    n = 1
    for i, count in enumerate(resnets):
        for j in range(count):
            found |= _block(f"down_blocks.{i}", j, f"input_blocks.{n + j}")
        found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n + count}.0.op"
        n += count + 1
    n = 0
    for i, (count, attention) in enumerate(zip(reversed(resnets), attends, strict=True)):
        for j in range(count + 1):
            found |= _block(f"up_blocks.{i}", j, f"output_blocks.{n + j}")
        found[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n + count}.{2 if attention else 1}.conv"
        n += count + 1
    return found


def vae_modules(config: VaeConfig) -> Modules:
    """The original name of every module by diffusers' name, where they differ."""
    levels, found = len(config.block_out_channels), {}
    for side in ("encoder", "decoder"):
        found[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for j in (0, 1):
            found |= _vae_resnet(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}")
        attention = f"{side}.mid_block.attentions.0"
        found |= {f"{attention}.{ours}": f"{side}.mid.attn_1.{theirs}" for ours, theirs in _VAE_ATTENTION.items()}
    for i in range(levels):
        down, up = (
            (f"encoder.down_blocks.{i}", f"encoder.down.{i}"),
            (f"decoder.up_blocks.{i}", f"decoder.up.{levels - 1 - i}"),
        )
        for ours, theirs in (down, up):
            for j in range(config.layers_per_block + 1):
                found |= _vae_resnet(f"{ours}.resnets.{j}", f"{theirs}.block.{j}")
        found[f"{down[0]}.downsamplers.0.conv"] = f"{down[1]}.downsample.conv"
        found[f"{up[0]}.upsamplers.0.conv"] = f"{up[1]}.upsample.conv"
    return found


def vae_words(config: VaeConfig) -> Modules:
    """The original name of every module by any that is found in files.

    Those are diffusers' names, and the original ones with words of diffusers' in them: people rename a module and not
    what it holds, and what it holds and not the module.
    """
    found = vae_modules(config)
    for ours, theirs in list(found.items()):
        above = {ours.rpartition(".")[0], theirs.rpartition(".")[0]}
        if theirs.endswith(".nin_shortcut"):
            found |= {f"{top}.conv_shortcut": theirs for top in above}
    for side in ("encoder", "decoder"):
        attention = f"{side}.mid.attn_1"
        for top in (f"{side}.{middle}.{one}" for middle in ("mid_block", "mid") for one in ("attentions.0", "attn_1")):
            words = _VAE_ATTENTION | _OTHER_WORDS | {word: word for word in _VAE_ATTENTION.values()}
            found |= {f"{top}.{word}": f"{attention}.{theirs}" for word, theirs in words.items()}
    return found


def vae_name(name: str, words: Modules) -> str | None:
    """The original name of a tensor of an autoencoder, whatever it is called and stands behind; None for others."""
    found = _VAE.fullmatch(name)
    return found and VAE_PREFIX + renamed(found[1], words)


def place(path: tree.Path, shape: tree.Shape, modules: Modules, prefix: str) -> Place:
    """Where the parameter at `path` of a network with these modules lies in the original layout."""
    name = f"{prefix}{renamed(names.tensor_name(path), modules)}"
    shapes = names.file_shapes(path, shape)
    return Place(name, tuple(reversed(shapes) if _VAE_PROJECTION.fullmatch(name) else shapes))


def renamed(name: str, modules: Modules) -> str:
    """`name` with the longest of its beginnings that is a known module translated."""
    words = name.split(".")
    for cut in range(len(words) - 1, 0, -1):
        if (module := ".".join(words[:cut])) in modules:
            return ".".join([modules[module], *words[cut:]])
    return name


def _block(level: str, j: int, block: str) -> Modules:
    return _resnet(f"{level}.resnets.{j}", f"{block}.0") | {f"{level}.attentions.{j}": f"{block}.1"}


def _resnet(ours: str, theirs: str) -> Modules:
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in _RESNET.items()}


def _vae_resnet(ours: str, theirs: str) -> Modules:
    return {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}
