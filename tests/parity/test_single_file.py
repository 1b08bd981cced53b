"""Single files against diffusers, both ways, for every family: real blocks, narrow.

A file written from diffusers' own modules by the mapping of its published scripts
(scripts/convert_diffusers_to_original_stable_diffusion.py and _sdxl.py, derived here anew) loads to the same tree as
the folder; and a file that we write is read by diffusers' converters (loaders/single_file_utils.py) to the same
modules.
"""

import re
import warnings
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file

from sdjax.weights import open_folder, open_single_file, save_folder, save_single_file
from tests.single_files import SMALL, expected

FAMILIES = sorted(SMALL)


def modules(family: str) -> dict:
    """diffusers' and transformers' own networks for a family's small configs, weights random."""
    torch.manual_seed(0)
    made, configs = {}, SMALL[family].configs
    for name, config in configs.items():
        if name.startswith("text"):
            kind = getattr(transformers, config["architectures"][0])
            made[name] = kind(transformers.CLIPTextConfig(**config))
        else:
            made[name] = getattr(diffusers, config["_class_name"]).from_config(config)
        with torch.no_grad():
            for parameter in made[name].parameters():
                parameter.normal_()
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, modules, folder in the diffusers layout that diffusers saved, file by the published mapping)."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    made = modules(name)
    path = root / "theirs.safetensors"
    save_file({key: t.contiguous() for key, t in published(name, made).items()}, path)
    for part, module in made.items():
        module.save_pretrained(root / "folder" / part)
    for file, content in open_single_file(path, presets=SMALL).files.items():
        (root / "folder" / file).parent.mkdir(exist_ok=True)
        (root / "folder" / file).write_bytes(content)
    return name, made, root / "folder", path


# The published mapping, the other direction ------------------------------------------------------

RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "class_embedding": "label_emb",
}  # fmt: skip


def unet_name(key: str, ups_with_attention: set[int], resnets: int) -> str:
    """With two resnets a level, as in the scripts, down block i begins at 3i + 1, up block i at 3i."""
    head, _, leaf = key.rpartition(".")
    if head in OUTSIDE:
        return f"{OUTSIDE[head]}.{leaf}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, j, rest = found.groups()
        return f"middle_block.{2 * int(j) if kind == 'resnets' else 1}.{resnet(rest) if kind == 'resnets' else rest}"
    side, i, kind, j, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key).groups()
    i, j, each = int(i), int(j), resnets + 1
    if kind == "downsamplers":
        return f"input_blocks.{each * (i + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        return f"output_blocks.{each * i + resnets}.{2 if i in ups_with_attention else 1}.conv.{leaf}"
    block = f"input_blocks.{each * i + j + 1}" if side == "down" else f"output_blocks.{each * i + j}"
    return f"{block}.0.{resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def resnet(rest: str) -> str:
    for mine, original in RESNET:
        rest = rest.replace(mine, original)
    return rest


def vae_name(key: str, levels: int) -> str:
    for pattern, new in (
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    ):
        key = re.sub(pattern, new, key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)


def open_clip(state: dict) -> dict:
    found = {}
    for key, tensor in state.items():
        if ".self_attn." in key and not key.split(".self_attn.")[1].startswith("out"):
            continue
        for new, old in (
            (r"text_model.encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
            (".fc1.", ".c_fc."), (".fc2.", ".c_proj."), (".self_attn", ".attn"),
            ("text_model.final_layer_norm.", "ln_final."),
            ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ):  # fmt: skip
            key = key.replace(new, old)
        found["text_projection" if key == "text_projection.weight" else key] = (
            tensor.T if "projection" in key else tensor
        )
    for leaf in ("weight", "bias"):
        for i in range(sum(".layers." in key and key.endswith("q_proj.bias") for key in state)):
            at = f"text_model.encoder.layers.{i}.self_attn"
            parts = [state[f"{at}.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return found


def published(name: str, made: dict) -> dict:
    configs = SMALL[name].configs
    kinds = configs["unet"]["up_block_types"]
    crossed = {i for i, kind in enumerate(kinds) if kind.startswith("Cross")}
    tensors = {
        "model.diffusion_model." + unet_name(key, crossed, configs["unet"]["layers_per_block"]): t
        for key, t in made["unet"].state_dict().items()
    }
    for key, t in made["vae"].state_dict().items():
        square = ".mid_block.attentions.0.to_" in key and t.ndim == 2
        tensors["first_stage_model." + vae_name(key, len(configs["vae"]["block_out_channels"]))] = (
            t[..., None, None] if square else t
        )
    xl = "addition_embed_type" in configs["unet"]
    for number, part in enumerate(part for part in configs if part.startswith("text")):
        state, prefix = text_state(made[part]), f"conditioner.embedders.{number}." if xl else "cond_stage_model."
        if configs[part]["hidden_act"] == "gelu":
            tensors |= {f"{prefix}model.{key}": t for key, t in open_clip(state).items()}
        else:
            tensors |= {f"{prefix}transformer.{key}": t for key, t in state.items()}
    return tensors


def text_state(module) -> dict:
    """By the names that transformers had before 5.6, which all published files have."""
    return {
        key if key.startswith("text_") else f"text_model.{key}": t
        for key, t in module.state_dict().items()
        if "position_ids" not in key
    }


# What is shown ------------------------------------------------------


def read_all(opened) -> dict:
    return {name: opened.read(name, tree) for name, tree in expected(opened.configs).items()}


def test_their_file_is_the_folder(family):
    _, _, folder, path = family
    ours, single = open_folder(folder), open_single_file(path, presets=SMALL)
    assert set(ours.configs) == set(single.configs)
    for name, tree in expected(single.configs).items():
        jax.tree.map(np.testing.assert_array_equal, single.read(name, tree)[0], ours.read(name, tree)[0])
    assert ours.files == single.files


def test_our_file_is_what_their_converters_read(family, tmp_path):
    name, made, folder, path = family
    opened = open_folder(folder)
    save_single_file(tmp_path / "ours.safetensors", opened.configs, read_all(opened), opened.scheduler)
    tensors = load_file(tmp_path / "ours.safetensors")
    extra = {"v_pred"} & set(tensors)
    assert {key: t.shape for key, t in tensors.items() if key not in extra} == {
        key: t.shape for key, t in load_file(path).items()
    }
    configs = SMALL[name].configs
    same(theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(configs["unet"])), made["unet"].state_dict())
    same(theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(configs["vae"])), made["vae"].state_dict())
    xl = "addition_embed_type" in configs["unet"]
    for number, part in enumerate(part for part in configs if part.startswith("text")):
        prefix = f"conditioner.embedders.{number}." if xl else "cond_stage_model."
        if configs[part]["hidden_act"] == "gelu":
            found = theirs.convert_open_clip_checkpoint(made[part], dict(tensors), prefix=f"{prefix}model.")
        else:
            found = theirs.convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=f"{prefix}transformer.")
        same(found, text_state(made[part]))


def same(found: dict, want: dict) -> None:
    assert set(found) == set(want)
    for key, tensor in want.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sdxl_refiner"])
def test_diffusers_opens_what_we_save(tmp_path, name):
    """The folder that a single file becomes: every component is found, and the tensors are the modules' own."""
    made = modules(name)
    save_file({key: t.contiguous() for key, t in published(name, made).items()}, tmp_path / "theirs.safetensors")
    opened = open_single_file(tmp_path / "theirs.safetensors", presets=SMALL)
    save_folder(tmp_path / "ours", read_all(opened), opened.files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert type(pipe).__name__ == SMALL[name].pipeline
    for part, module in made.items():
        same(dict(getattr(pipe, part).state_dict()), dict(module.state_dict()))
    assert pipe.scheduler.config.prediction_type == opened.scheduler["prediction_type"]


def test_sizes_of_the_folder_and_the_file(family, tmp_path):
    """No tensor is lost or doubled: as many numbers on either side."""
    _, _, folder, path = family
    parts = [Path(file) for file in sorted(folder.rglob("*.safetensors"))]
    assert sum(t.numel() for p in parts for t in load_file(p).values()) == sum(
        t.numel() for t in load_file(path).values()
    )
