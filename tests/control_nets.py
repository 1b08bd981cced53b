"""Small random control networks for a given U-Net, as the files that diffusers and others write of them.

Tensors are dicts by the names of the file, in its order of axes, so that diffusers reads the same files. What the
authors of ControlNet call them is said here by rules of its own, for tests of what sdjax.weights.ldm says.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sdjax.config import ControlNetConfig
from sdjax.config.t2i_adapter import T2IAdapterConfig
from sdjax.core import tree
from sdjax.nn.shapes import expected_network
from sdjax.weights import names
from tests.checkpoints import random_params

Tensors = dict[str, np.ndarray]
FILE = "diffusion_pytorch_model.safetensors"
# What a ControlNet's config.json has in common with that of its U-Net.
_SHARED = (
    "act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
    "class_embed_type", "cross_attention_dim", "down_block_types", "flip_sin_to_cos", "freq_shift", "layers_per_block",
    "mid_block_type", "norm_eps", "norm_num_groups", "num_class_embeds", "only_cross_attention",
    "projection_class_embeddings_input_dim", "transformer_layers_per_block", "upcast_attention",
    "use_linear_projection",
)  # fmt: skip


def controlnet_config(unet: Mapping[str, Any], factor: int = 8, **more: Any) -> dict[str, Any]:
    """config.json of a ControlNet for a U-Net with this config.json, and a VAE that halves to 1 / factor."""
    widths = [4, 8, 8, 12, 12][: factor.bit_length()]
    return {
        "_class_name": "ControlNetModel",
        "in_channels": 4,
        "conditioning_embedding_out_channels": widths,
        **{key: unet[key] for key in _SHARED if key in unet},
        **more,
    }


def union_config(unet: Mapping[str, Any], types: int = 6, factor: int = 8, **more: Any) -> dict[str, Any]:
    """config.json of a ControlNet-Union for an SDXL U-Net with this config.json."""
    width = unet["block_out_channels"][0]
    own = {"num_control_type": types, "num_trans_channel": width, "num_trans_head": 2, "num_proj_channel": width}
    config = controlnet_config(unet, factor, **own, **more)
    config.pop("mid_block_type", None)
    return config | {"_class_name": "ControlNetUnionModel"}


def t2i_config(unet: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """config.json of a T2I-Adapter for a U-Net of four levels, or of three as SDXL's is."""
    widths = list(unet["block_out_channels"])
    xl = len(widths) == 3
    made = {"adapter_type": "full_adapter_xl" if xl else "full_adapter", "downscale_factor": 16 if xl else 8}
    return {"_class_name": "T2IAdapter", **made, "channels": [*widths, *widths[-1:] * xl], **more}


def network_config(config: Mapping[str, Any]) -> ControlNetConfig | T2IAdapterConfig:
    """What sdjax reads a config.json as."""
    return (T2IAdapterConfig if config["_class_name"] == "T2IAdapter" else ControlNetConfig).from_dict(config)


def net_tensors(config: Mapping[str, Any], seed: int = 0, dtype: Any = np.float32) -> Tensors:
    """A network's random tensors by diffusers' names; no convolution is zero, so that it steers."""
    prefix = "adapter." if config["_class_name"] == "T2IAdapter" else ""
    params = tree.flatten(random_params(expected_network(network_config(config)), np.float32, seed))
    rng, made = np.random.default_rng(seed), Tensors()
    for path, array in params.items():
        name, stored = names.tensor_name(path), names.to_file(path, array)
        if ".attn.v_proj." in name:  # torch keeps queries, keys and values in one
            name = name.replace(".v_proj.", ".in_proj_")
            stored = np.concatenate(
                [rng.standard_normal(stored.shape) / 4, rng.standard_normal(stored.shape) / 4, stored]
            )
        made[prefix + name] = np.ascontiguousarray(stored, dtype)
    return made


def write_net(folder: Path, config: Mapping[str, Any], seed: int = 0, dtype: Any = np.float32) -> Path:
    """A folder in the diffusers layout, which both sdjax and diffusers read."""
    return write_folder(folder, config, net_tensors(config, seed, dtype))


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """A folder of these tensors and this config.json."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / FILE)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# The authors' names -------------------------------------------------------

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OTHERS = (
    (r"conv_in\.(.*)", "input_blocks.0.0.{0}"),
    (r"time_embedding\.linear_([12])\.(.*)", "time_embed.{twice0}.{1}"),
    (r"add_embedding\.linear_([12])\.(.*)", "label_emb.0.{twice0}.{1}"),
    (r"mid_block\.attentions\.0\.(.*)", "middle_block.1.{0}"),
    (r"controlnet_cond_embedding\.conv_in\.(.*)", "input_hint_block.0.{0}"),
    (r"controlnet_cond_embedding\.conv_out\.(.*)", "input_hint_block.{last}.{0}"),
    (r"controlnet_down_blocks\.(\d+)\.(.*)", "zero_convs.{0}.0.{1}"),
    (r"controlnet_mid_block\.(.*)", "middle_block_out.0.{0}"),
)


def cldm_name(name: str, config: Mapping[str, Any]) -> str:
    """What cldm/cldm.py calls a tensor of a ControlNet that diffusers calls `name`."""
    row = config["layers_per_block"] + 1  # of blocks: a level's resnets, and what halves
    last = 4 * len(config["conditioning_embedding_out_channels"]) - 2
    if found := re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions|downsamplers)\.(\d)\.(.*)", name):
        level, what, j, rest = int(found[1]), found[2], int(found[3]), found[4]
        if what == "downsamplers":
            return f"input_blocks.{row * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        inside = rest if what == "attentions" else _inside(rest)
        return f"input_blocks.{1 + row * level + j}.{int(what == 'attentions')}.{inside}"
    if found := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", name):
        return f"middle_block.{2 * int(found[1])}.{_inside(found[2])}"
    if found := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d)\.(.*)", name):
        return f"input_hint_block.{2 + 2 * int(found[1])}.{found[2]}"
    for pattern, theirs in _OTHERS:
        if found := re.fullmatch(pattern, name):
            groups = found.groups()
            twice = 2 * (int(groups[0]) - 1) if groups[0].isdigit() else 0
            return theirs.format(*groups, last=last, twice0=twice)
    return name


def _inside(rest: str) -> str:
    module, _, leaf = rest.partition(".")
    return f"{_RESNET[module]}.{leaf}"


def cldm(tensors: Tensors, config: Mapping[str, Any], prefix: str = "control_model.") -> Tensors:
    """The same tensors by their authors' names."""
    return {prefix + cldm_name(name, config): array for name, array in tensors.items()}


def is_copied(name: str) -> bool:
    """Whether a tensor of a ControlNet, by diffusers' name, is one that its U-Net has too."""
    return not name.startswith("controlnet_")


def control_lora(tensors: Tensors, config: Mapping[str, Any], rank: int = 2, seed: int = 0) -> Tensors:
    """A Control-LoRA: every kernel that the U-Net has too in thin factors, all else as it is in `tensors`."""
    rng, made = np.random.default_rng(seed), {"lora_controlnet": np.zeros((1,), np.float32)}
    for name, array in tensors.items():
        theirs = cldm_name(name, config)
        if not is_copied(name) or array.ndim == 1:
            made[theirs] = array
            continue
        outward, *inward = array.shape
        layer, ones = theirs.removesuffix(".weight"), (1,) * (array.ndim - 2)
        made[f"{layer}.up"] = rng.standard_normal((outward, rank, *ones)).astype(array.dtype) / 4
        made[f"{layer}.down"] = rng.standard_normal((rank, *inward)).astype(array.dtype) / 8
    return made


def lllite_tensors(
    modules: Mapping[str, tuple[int, int]], seed: int = 0, condition: int = 8, inner: int = 6
) -> Tensors:
    """A ControlNet-LLLite; modules: depth and width of what goes in, by name without "lllite_unet_"."""
    rng, made = np.random.default_rng(seed), Tensors()
    kernels = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}

    def layer(name: str, *shape: int) -> None:
        scale = np.sqrt(np.prod(shape[1:]))
        made[f"{name}.weight"] = (rng.standard_normal(shape) / scale).astype(np.float32)
        made[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0]).astype(np.float32)

    for module, (depth, width) in modules.items():
        above, channels = f"lllite_unet_{module}", 3
        for i, k in enumerate(kernels[depth]):
            out = condition if i == len(kernels[depth]) - 1 else condition // 2
            layer(f"{above}.conditioning1.{2 * i}", out, channels, k, k)
            channels = out
        layer(f"{above}.down.0", inner, width)
        layer(f"{above}.mid.0", inner, inner + condition)
        layer(f"{above}.up.0", width, inner)
    return made
