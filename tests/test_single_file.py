"""Single files: told by their tensors, read strictly, written back bit for bit; what is none is called by its name."""

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sdjax.config.presets import PRESETS
from sdjax.core.tree import flatten
from sdjax.weights import (
    CheckpointError,
    default_layout,
    open_checkpoint,
    open_folder,
    open_single_file,
    open_vae,
    read_component,
    save_component,
    save_folder,
    save_single_file,
)
from tests.single_files import SMALL, components, expected

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FAMILIES = sorted(SMALL)
ONE = np.ones((2, 2), np.float32)
BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A file of a family's, made once: its path and the parameters in it; more input channels are zeros."""
    made: dict = {}

    def get(family: str) -> tuple[Path, dict]:
        unet = SMALL[family].configs["unet"]
        base = next((n for n in FAMILIES if SMALL[n].configs["unet"] == unet | {"in_channels": 4}), family)
        if base != family:
            wide = np.zeros((unet["block_out_channels"][0], unet["in_channels"], 3, 3), np.float32)
            path = tmp_path_factory.mktemp(family) / "model.safetensors"
            return edited(get(base)[0], path, {f"{UNET}input_blocks.0.0.weight": wide}), get(base)[1]
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "model.safetensors"
            parts = components(SMALL[family])
            save_single_file(path, SMALL[family].configs, parts, SMALL[family].scheduler)
            made[family] = path, {name: params for name, (params, _) in parts.items()}
        return made[family]

    return get


def edited(source: Path, path: Path, add=None, drop=lambda name: False, metadata=None) -> Path:
    """The file with tensors added or left out."""
    tensors = {name: t for name, t in safetensors.numpy.load_file(source).items() if not drop(name)}
    safetensors.numpy.save_file(tensors | (add or {}), path, metadata)
    return path


def read_all(opened) -> dict:
    return {name: opened.read(name, tree) for name, tree in expected(opened.configs).items()}


def tensors_of(path: Path) -> dict:
    """Every tensor's dtype, shape and bytes, so that equality is bit for bit."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    where = {name: entry["data_offsets"] for name, entry in header.items()}
    return {n: (e["dtype"], e["shape"], content[start + where[n][0] : start + where[n][1]]) for n, e in header.items()}


def refused(path: Path, match: str, **options) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_single_file(path, presets=SMALL, **options)


# What is in a file ------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recognised(originals, family):
    opened = open_single_file(originals(family)[0], presets=SMALL)
    assert opened.configs == SMALL[family].configs
    assert opened.scheduler["prediction_type"] == PRESETS[family].scheduler.get("prediction_type", "epsilon")
    assert opened.index["_class_name"] == PRESETS[family].pipeline


# One of each way to number blocks; tests/parity has all.
DISTINCT = ["sd15", "sd21", "sd2_x4_upscaler", "sdxl", "sdxl_refiner", "bk_sdm_tiny", "koala_700m", "ssd_1b"]


@pytest.mark.parametrize("family", DISTINCT)
def test_there_and_back_again_bit_for_bit(originals, tmp_path, family):
    """Single file, folder, single file; each component in a dtype of its own."""
    opened = open_single_file(originals(family)[0], presets=SMALL)
    parts = read_all(opened)
    jax.tree.map(np.testing.assert_array_equal, {name: p for name, (p, _) in parts.items()}, originals(family)[1])
    for name, dtype in (("unet", np.float16), ("vae", jnp.bfloat16)):
        narrow = jax.tree.map(lambda leaf, dtype=dtype: np.asarray(leaf).astype(dtype), parts[name][0])
        parts[name] = narrow, default_layout(narrow, opened.configs[name])
    save_single_file(tmp_path / "a.safetensors", opened.configs, parts, opened.scheduler)
    opened = open_single_file(tmp_path / "a.safetensors", presets=SMALL)
    save_folder(tmp_path / "folder", read_all(opened), opened.files)
    folder = open_folder(tmp_path / "folder")
    assert folder.files == opened.files
    save_single_file(tmp_path / "b.safetensors", folder.configs, read_all(folder), folder.scheduler)
    first = tensors_of(tmp_path / "a.safetensors")
    assert tensors_of(tmp_path / "b.safetensors") == first
    assert {dtype for dtype, *_ in first.values()} >= {"F16", "BF16", "F32"}


# Of the published files: A1111's wiki and the authors' configs list them; diffusers' converter knows them by these.
PUBLISHED = {
    "sd15": {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        f"{UNET}output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        f"{UNET}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        f"{VAE}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{VAE}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        f"{VAE}decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
    },
    "sd21": {
        f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.22.mlp.c_fc.bias": (4096,),
        "cond_stage_model.model.ln_final.weight": (1024,),
    },
    "sdxl": {
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}input_blocks.7.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        f"{UNET}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias": (3840,),
    },
    "sdxl_refiner": {
        f"{UNET}label_emb.0.0.weight": (1536, 2560),
        "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_names_and_shapes_at_full_size(family):
    """From the configs alone: the names that tell the published files apart, with their shapes."""
    from sdjax.weights.original import Original

    layout, found = Original(PRESETS[family].configs), {}
    for component, tree in expected(PRESETS[family].configs).items():
        places = layout.places(component)
        for path, leaf in flatten(tree).items():
            place = places(path, leaf.shape)[0]
            found[place.name] = place.shapes[0]
    assert {name: found.get(name) for name in PUBLISHED[family]} == PUBLISHED[family]


def test_half_of_the_text_encoders_names_may_lack_their_prefix(originals, tmp_path):
    path, params = originals("sd15")
    tensors = {
        name.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): tensor
        for name, tensor in safetensors.numpy.load_file(path).items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "old.safetensors")
    opened = open_single_file(tmp_path / "old.safetensors", presets=SMALL)
    read, _ = opened.read("text_encoder", expected(opened.configs)["text_encoder"])
    jax.tree.map(np.testing.assert_array_equal, read, params["text_encoder"])


# How people's tools write a published file: (family, what each name becomes, what each tensor becomes).
def _text(name: str) -> bool:
    return name.startswith(("cond_stage_model.", "conditioner."))


def _vae_words(words: dict[str, str]):
    def renamed(name: str) -> str:
        head, dot, leaf = name.rpartition(".attn_1.")
        word, _, kind = leaf.rpartition(".")
        return f"{head}{dot}{words[word]}.{kind}" if dot and word in words else name

    return renamed


NEW_WORDS = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
OLD_WORDS = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}
HUGGING = "cond_stage_model.transformer.text_model."
SPELLINGS = {
    "wrapped": ("sd15", lambda n: f"state_dict.{n}"),
    "wrapped twice": ("sd21", lambda n: f"model.module.{n}"),
    "wrapped by an unknown word": ("sd15", lambda n: f"sd_15_pruned.{n}"),
    "wrapped as averages": ("sd15", lambda n: f"ema.{n}"),
    "compiled": ("sd15", lambda n: n.replace("diffusion_model.", "diffusion_model._orig_mod.")),
    "parallel": ("sd15", lambda n: n.replace("first_stage_model.", "first_stage_model.module.")),
    "u-net by its module's name": ("sd15", lambda n: n.removeprefix("model.") if n.startswith(UNET) else n),
    "u-net as kohya keeps it": ("sdxl", lambda n: n.replace(UNET, "unet.")),
    "u-net bare": ("sd15", lambda n: n.removeprefix(UNET)),
    "u-net bare in a model": ("sd21", lambda n: n.replace("model.diffusion_model.", "model.")),
    "wrapped, u-net by its module's name": ("sd15", lambda n: f"state_dict.{n.removeprefix('model.')}"),
    "sdxl's prefix in sd2": ("sd21", lambda n: n.replace("cond_stage_model.", "conditioner.embedders.0.")),
    "sdxl's prefix in sd1": ("sd15", lambda n: n.replace("cond_stage_model.", "conditioner.embedders.0.")),
    "sd1's prefix in the refiner": (
        "sdxl_refiner", lambda n: n.replace("conditioner.embedders.0.", "cond_stage_model."),
    ),
    "numbered otherwise": ("sdxl", lambda n: n.replace("conditioner.embedders.", "cond_stage_model.")),
    "numbers exchanged": ("sdxl", lambda n: re.sub(r"embedders\.(\d)", lambda m: f"embedders.{1 - int(m[1])}", n)),
    "both under one number": ("sdxl", lambda n: n.replace("embedders.1.", "embedders.0.")),
    "text encoders by diffusers' folders": (
        "sdxl",
        lambda n: n.replace("conditioner.embedders.0.transformer.", "text_encoder.").replace(
            "conditioner.embedders.1.model.", "text_encoder_2."
        ),
    ),
    "text without prefix": ("sd15", lambda n: n.removeprefix("cond_stage_model.transformer.") if _text(n) else n),
    "text in part without text_model": ("sd15", lambda n: n.replace(f"{HUGGING}encoder", "cond_stage_model.encoder")),
    "text in part without prefix": ("sd15", lambda n: n.replace(f"{HUGGING}encoder", "encoder")),
    "text of OpenCLIP bare": ("sd21", lambda n: n.removeprefix("cond_stage_model.model.") if _text(n) else n),
    "vae as a pipeline's": ("sd15", lambda n: n.replace(VAE, "vae.")),
    "vae bare": ("sd15", lambda n: n.removeprefix(VAE)),
    "vae with diffusers' words": ("sd15", _vae_words(NEW_WORDS)),
    "vae with diffusers' old words": ("sdxl", _vae_words(OLD_WORDS)),
    "vae with a word or two": ("sd15", _vae_words({"proj_out": "to_out", "k": "to_k"})),
    "vae with diffusers' middle in part": ("sd15", lambda n: n.replace(".mid.attn_1.", ".mid.attentions.0.")),
    "vae with diffusers' shortcuts": ("sd15", lambda n: n.replace("nin_shortcut", "conv_shortcut")),
}  # fmt: skip


def same_parameters(path: Path, params: dict):
    """The file opens and holds these parameters; what was opened."""
    opened = open_single_file(path, presets=SMALL)
    read = {name: tree for name, (tree, _) in read_all(opened).items()}
    jax.tree.map(np.testing.assert_array_equal, read, params)
    return opened


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_names_of_the_same_tensors(originals, tmp_path, spelling):
    family, rename = SPELLINGS[spelling]
    path, params = originals(family)
    tensors = safetensors.numpy.load_file(path)
    other = {rename(name): tensor for name, tensor in tensors.items()}
    assert len(other) == len(tensors) and other.keys() != tensors.keys()
    safetensors.numpy.save_file(other, tmp_path / "a.safetensors")
    opened = same_parameters(tmp_path / "a.safetensors", params)
    assert not any("left alone" in note for note in opened.notes)


def test_a_vae_by_diffusers_names_in_an_original_file(originals, tmp_path):
    """diffusers' names as save_component writes them, once under the original prefix and once under diffusers'."""
    path, params = originals("sd15")
    save_component(tmp_path / "vae", *components(SMALL["sd15"])["vae"])
    theirs = safetensors.numpy.load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert "decoder.up_blocks.0.resnets.0.conv1.weight" in theirs
    for prefix in (VAE, "vae."):
        renamed = {f"{prefix}{name}": tensor for name, tensor in theirs.items()}
        edited(path, tmp_path / "a.safetensors", renamed, drop=lambda n: n.startswith(VAE))
        same_parameters(tmp_path / "a.safetensors", params)


@pytest.mark.parametrize("module", ["proj_in", "proj_out"])
@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_projection_as_a_convolution_and_as_a_linear_layer(originals, tmp_path, family, module):
    """Stable Diffusion 1 has 1x1 convolutions there, 2 linear layers; either file may have the other."""
    path, params = originals(family)
    other = {
        n: t[..., 0, 0] if t.ndim == 4 else t[..., None, None]
        for n, t in safetensors.numpy.load_file(path).items()
        if n.endswith(f".{module}.weight")
    }
    assert len(other) > 10
    same_parameters(edited(path, tmp_path / "a.safetensors", other), params)


def test_a_projection_that_is_a_linear_layer_is_told_by_its_name(originals, tmp_path):
    """text_projection is for x @ W; torch's Linear, whose tensor is text_projection.weight, has it transposed."""
    path, params = originals("sdxl")
    top = "conditioner.embedders.1.model.text_projection"
    matrix = safetensors.numpy.load_file(path)[top]
    assert matrix.shape[0] == matrix.shape[1] and (matrix != matrix.T).any()
    other = {f"{top}.weight": np.ascontiguousarray(matrix.T)}
    same_parameters(edited(path, tmp_path / "a.safetensors", other, drop=lambda n: n == top), params)
    # Both, which agree; and both, which do not.
    same_parameters(edited(path, tmp_path / "b.safetensors", other), params)
    opened = open_single_file(edited(path, tmp_path / "c.safetensors", {f"{top}.weight": matrix}), presets=SMALL)
    with pytest.raises(CheckpointError, match=r"1 duplicate:\n.*model.text_projection, .*text_projection.weight"):
        opened.read("text_encoder_2", expected(opened.configs)["text_encoder_2"])


def test_one_tensor_by_two_names(originals, tmp_path):
    path, params = originals("sd15")
    name = f"{UNET}time_embed.0.bias"
    tensor = safetensors.numpy.load_file(path)[name]
    for again in (f"module.{name}", "diffusion_model.time_embed.0.bias"):
        more = {
            again: tensor,
            "diffusion_model.middle_block.0.in_layers.0.bias": _of(path, "middle_block.0.in_layers.0.bias"),
        }
        opened = same_parameters(edited(path, tmp_path / "a.safetensors", more), params)
        assert "there once more (2 tensors)" in opened.notes[0]
        refused(
            edited(path, tmp_path / "b.safetensors", more | {again: tensor + 1}),
            f"twice, and they differ: {name} and {again}",
        )
    vae = f"{VAE}encoder.mid.attn_1.k.bias"
    refused(
        edited(path, tmp_path / "c.safetensors", {vae.replace(".k.", ".to_k."): np.ones(16, np.float32)}),
        rf"twice, and they differ: {vae} and .*attn_1.to_k.bias; two models were mixed",
    )


def _of(path: Path, name: str) -> np.ndarray:
    return safetensors.numpy.load_file(path)[UNET + name]


def test_numbers_of_64_bits_are_rounded_to_32(originals, tmp_path):
    path, params = originals("sd15")
    name = f"{UNET}time_embed.0.bias"
    wide = np.linspace(-1, 1, 64) / 3
    assert (wide != wide.astype(np.float32)).any()
    opened = open_single_file(edited(path, tmp_path / "a.safetensors", {name: wide}), presets=SMALL)
    assert opened.notes == (
        f"{tmp_path / 'a.safetensors'} is stored in 64 bits, if only in part: each number is read "
        "as the nearest float32, and saved as one",
    )
    read, layout = opened.read("unet", expected(opened.configs)["unet"])
    np.testing.assert_array_equal(read["time_embedding"]["linear_1"]["bias"], wide.astype(np.float32), strict=True)
    save_component(tmp_path / "unet", read, layout)
    for broken, what in ((1e39, "cast to float32"), (np.nan, "holds nan")):
        edited(path, tmp_path / "b.safetensors", {name: np.where(np.arange(64) == 5, broken, wide)})
        opened = open_single_file(tmp_path / "b.safetensors", presets=SMALL)
        with pytest.raises(CheckpointError, match=rf"{name}.*{what}|{what}.*{name}"):
            opened.read("unet", expected(opened.configs)["unet"])


def test_a_vae_with_linear_projections(originals, tmp_path):
    path, params = originals("sd15")
    tensors = safetensors.numpy.load_file(path)
    tensors |= {n: t[:, :, 0, 0] for n, t in tensors.items() if ".attn_1." in n and t.ndim == 4}
    safetensors.numpy.save_file(tensors, tmp_path / "new.safetensors")
    opened = open_single_file(tmp_path / "new.safetensors", presets=SMALL)
    jax.tree.map(np.testing.assert_array_equal, opened.read("vae", expected(opened.configs)["vae"])[0], params["vae"])


def test_leftovers_are_left_and_named(originals, tmp_path):
    ones = np.ones(3, np.float32)
    extra = {
        "alphas_cumprod": ones.astype(np.float64),
        "sqrt_one_minus_alphas_cumprod": ones,
        "model_ema.decay": ones,
        "model_ema.diffusion_modelinput_blocks00weight": ones,
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "cond_stage_model.transformer.text_projection.weight": ones,
        "first_stage_model.loss.logvar": ones,
        "first_stage_model.discriminator.main.0.weight": ones,
        "loss.perceptual_loss.lin0.model.1.weight": ones,
        "safety_checker.concept_embeds": np.full(3, np.nan, np.float32),
        "depth_model.model.scratch.refinenet1.out_conv.bias": ones,
    }
    opened = open_single_file(edited(originals("sd15")[0], tmp_path / "a.safetensors", extra), presets=SMALL)
    assert (
        len(opened.notes) == 1
        and "averaged weights (model_ema.*; the plain ones are read) (2 tensors)" in opened.notes[0]
    )
    assert "the safety checker (1 tensors)" in opened.notes[0]
    assert "the VAE's training loss (3 tensors)" in opened.notes[0]
    params = {name: tree for name, (tree, _) in read_all(opened).items()}
    jax.tree.map(np.testing.assert_array_equal, params, originals("sd15")[1])


def test_tensors_of_no_network_are_left_and_named(originals, tmp_path):
    """Whatever they are: by the first word of their names; and they hide nothing that is missing."""
    path, params = originals("sd15")
    extra = {
        "embedding_manager.string_to_param_dict.*": ONE, "embedding_manager.initial": ONE,
        "global_step": np.zeros(1, np.int64),
        "learned_conditioning": ONE, "denoiser.weighting.x": ONE, "optimizer_states.0.state.1.exp_avg": ONE,
        "mystery.weight": np.full(2, np.nan, np.float32), "conditional.vision_model.embeddings.class_embedding": ONE,
        "cond_stage_model.transformer.vision_model.encoder.layers.0.mlp.fc1.weight": ONE,
    }  # fmt: skip
    opened = same_parameters(edited(path, tmp_path / "a.safetensors", extra), params)
    assert len(opened.notes) == 1
    for named in ("embedding_manager.* (2 tensors)", "global_step (1", "learned_conditioning (1", "mystery.* (1",
                  "the training noise schedule (1", "optimizer_states.* (1", "sees pictures (2"):  # fmt: skip
        assert named in opened.notes[0]
    lost = f"{UNET}time_embed.0.bias"
    moved = extra | {"modle.diffusion_model.time_embed.0.bias": np.zeros(64, np.float32)}
    opened = open_single_file(edited(path, tmp_path / "b.safetensors", moved, drop=lambda n: n == lost), presets=SMALL)
    with pytest.raises(
        CheckpointError, match=rf"(?s)1 missing:\n *{lost}.*Left aside in it: .*modle\.\* \(1 tensors\)"
    ):
        opened.read("unet", expected(opened.configs)["unet"])


def test_stable_diffusion_2_s_last_layer_is_left(originals, tmp_path):
    path, params = originals("sd21")
    tensors = safetensors.numpy.load_file(path)
    top = "cond_stage_model.model.transformer.resblocks."
    extra = {n.replace(f"{top}1.", f"{top}2."): t for n, t in tensors.items() if n.startswith(f"{top}1.")}
    extra["cond_stage_model.model.text_projection"] = np.ones((32, 32), np.float32)
    extra["cond_stage_model.model.logit_scale"] = np.ones((), np.float32)
    assert len(extra) == 14
    opened = open_single_file(edited(path, tmp_path / "a.safetensors", extra), presets=SMALL)
    read, _ = opened.read("text_encoder", expected(opened.configs)["text_encoder"])
    jax.tree.map(np.testing.assert_array_equal, read, params["text_encoder"])
    more = {n.replace(f"{top}1.", f"{top}3."): t for n, t in tensors.items() if n.startswith(f"{top}1.")}
    opened = open_single_file(edited(path, tmp_path / "b.safetensors", extra | more), presets=SMALL)
    with pytest.raises(CheckpointError, match=r"(?s)12 unexpected.*resblocks\.3\."):
        opened.read("text_encoder", expected(opened.configs)["text_encoder"])


def test_other_input_channels_are_taken_from_the_file(originals, tmp_path):
    path, _ = originals("sd15")
    wide = {f"{UNET}input_blocks.0.0.weight": np.zeros((16, 12, 3, 3), np.float32)}
    opened = open_single_file(edited(path, tmp_path / "a.safetensors", wide), presets=SMALL)
    assert opened.configs["unet"]["in_channels"] == 12 and "12 input channels" in opened.notes[0]
    opened.read("unet", expected(opened.configs)["unet"])


def test_a_distilled_u_net_that_knows_the_guidance_scale(originals, tmp_path):
    key = f"{UNET}time_embed.cond_proj.weight"
    path = edited(originals("sd15")[0], tmp_path / "a.safetensors", {key: np.ones((16, 6), np.float32)})
    opened = open_single_file(path, presets=SMALL)
    assert opened.configs["unet"]["time_cond_proj_dim"] == 6
    read, _ = opened.read("unet", expected(opened.configs)["unet"])
    assert read["time_embedding"]["cond_proj"]["kernel"].shape == (6, 16)


@pytest.mark.parametrize(
    "dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3fnuz, jnp.float8_e5m2fnuz], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("single", [True, False])
def test_eight_bits_are_read_as_the_same_numbers(originals, tmp_path, dtype, single):
    """Every number of the format, through its own bits: what ml_dtypes says they are, in float16."""
    bits = np.arange(256, dtype=np.uint8)
    codes = bits[np.isfinite(bits.view(dtype).astype(np.float32))]
    path, _ = originals("sd15")
    name = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    table = np.resize(codes, (16, 16)).view(dtype)
    if single:
        opened = open_single_file(eight_bit(path, tmp_path / "a.safetensors", name, table), presets=SMALL)
    else:
        preset = SMALL["sd15"]
        save_folder(tmp_path / "f", components(preset), open_single_file(path, presets=SMALL).files)
        weights = tmp_path / "f" / "unet" / "diffusion_pytorch_model.safetensors"
        eight_bit(weights, weights, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", table)
        opened = open_folder(tmp_path / "f")
    params, layout = opened.read("unet", expected(opened.configs)["unet"])
    kernel = params["down_blocks.0"]["attentions.0"]["transformer_blocks.0"]["attn1"]["to_q"]["kernel"]
    assert kernel.dtype == np.float16 and any("stored in 8 bits" in note for note in opened.notes)
    np.testing.assert_array_equal(np.asarray(kernel, np.float32).T, table.astype(np.float32))
    save_component(tmp_path / "out", params, layout)
    saved = safetensors.numpy.load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert saved["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"].dtype == np.float16


def test_a_buffer_of_eight_bits(tmp_path):
    """As of a text encoder that was cast as a whole, its positions too."""
    component, name = components(SMALL["sd15"])["text_encoder"], "text_model.embeddings.position_ids"
    save_component(tmp_path / "in", *component)
    path, ids = tmp_path / "in" / "model.safetensors", np.arange(12, dtype=np.float32)[None]
    eight_bit(path, path, name, ids.astype(jnp.float8_e4m3fn))
    params, layout = read_component(tmp_path / "in", expected(SMALL["sd15"].configs)["text_encoder"])
    save_component(tmp_path / "out", params, layout)
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")[name]
    np.testing.assert_array_equal(saved, ids.astype(np.float16), strict=True)


def eight_bit(source: Path, path: Path, name: str, table: np.ndarray) -> Path:
    """One tensor replaced by one of 8 bits; safetensors' NumPy writer has no such dtype, so by its serializer."""
    code = {"float8_e4m3fn": "F8_E4M3"}.get(table.dtype.name, table.dtype.name.replace("float8", "F8").upper())
    tensors = safetensors.numpy.load_file(source)
    tensors[name] = table.view(np.uint8)
    path.write_bytes(safetensors.numpy.save(tensors))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header[name]["dtype"] == "U8"
    header[name]["dtype"] = code
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


# What the U-Net predicts ------------------------------------------------------


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A small Stable Diffusion 2 with metadata that say nothing."""
    path = tmp_path_factory.mktemp("sd2") / "model.safetensors"
    save_single_file(path, SMALL["sd21"].configs, components(SMALL["sd21"]), {})
    return edited(path, path)


@pytest.mark.parametrize("spread,found", [(0.05, "epsilon"), (0.2, "v_prediction")])
def test_stable_diffusion_2_is_guessed_as_comfyui_does(second, tmp_path, spread, found):
    bias = np.tile(np.float32([-spread, spread]), 8)
    path = edited(second, tmp_path / "a.safetensors", {BIAS: bias})
    opened = open_single_file(path, presets=SMALL)
    assert opened.scheduler["prediction_type"] == found
    note = next(note for note in opened.notes if "predicts" in note)
    assert found in note and "guessed as ComfyUI does" in note and "prediction_type= overrides" in note
    native = {"epsilon": "sd21_base", "v_prediction": "sd21"}[found]
    assert opened.configs["unet"]["sample_size"] == PRESETS[native].configs["unet"]["sample_size"]
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[found]
    assert open_single_file(path, other, presets=SMALL).scheduler["prediction_type"] == other


EMPTY = np.zeros(0, np.float32)


@pytest.mark.parametrize(
    "marks,metadata,given,want",
    [
        ({}, {}, None, ("epsilon", False)),
        ({"v_pred": EMPTY}, {}, None, ("v_prediction", False)),
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, None, ("v_prediction", True)),
        ({"ztsnr": EMPTY}, {}, None, ("epsilon", False)),
        ({}, {"modelspec.prediction_type": "v"}, None, ("v_prediction", False)),
        ({}, {"modelspec.predict_key": "v"}, None, ("v_prediction", False)),
        ({"v_pred": EMPTY}, {"modelspec.prediction_type": "epsilon"}, None, ("v_prediction", False)),
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, "epsilon", ("epsilon", False)),
        ({}, {}, "v_prediction", ("v_prediction", False)),
    ],
)
def test_marks_metadata_and_the_user(originals, tmp_path, marks, metadata, given, want):
    path = edited(originals("sdxl")[0], tmp_path / "a.safetensors", marks, metadata=metadata or None)
    scheduler = open_single_file(path, given, presets=SMALL).scheduler
    assert (scheduler["prediction_type"], scheduler.get("rescale_betas_zero_snr", False)) == want
    assert scheduler["timestep_spacing"] == ("trailing" if want[1] else "leading")


def test_an_sdxl_that_predicts_v_is_marked_when_it_is_written(originals, tmp_path):
    path, _ = originals("sdxl")
    marked = edited(path, tmp_path / "a.safetensors", {"v_pred": EMPTY, "ztsnr": EMPTY})
    opened = open_single_file(marked, presets=SMALL)
    save_single_file(tmp_path / "b.safetensors", opened.configs, read_all(opened), opened.scheduler)
    assert tensors_of(tmp_path / "b.safetensors") == tensors_of(marked)


def test_an_unknown_prediction_type(originals):
    with pytest.raises(ValueError, match="'velocity' is unknown; nearest: .*; known: epsilon, v_prediction, sample"):
        open_single_file(originals("sd15")[0], "velocity", presets=SMALL)


# An autoencoder alone ------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "first_stage_model.", "vae.", "state_dict.", "module.first_stage_model.", "ema."]
)
def test_a_vae_by_its_original_names(originals, tmp_path, prefix):
    path, _ = originals("sdxl")
    other = {n: t + 1 for n, t in safetensors.numpy.load_file(path).items() if n.startswith(VAE)}
    safetensors.numpy.save_file(
        {prefix + n.removeprefix(VAE): t for n, t in other.items()}, tmp_path / "vae.safetensors"
    )
    swapped(originals("sdxl"), tmp_path / "vae.safetensors", 1)


def test_a_vae_by_diffusers_names_as_a_file_and_as_a_folder(originals, tmp_path):
    params, layout = components(SMALL["sd15"], seed=5)["vae"]
    save_component(tmp_path / "vae", params, layout)
    opened = open_single_file(originals("sdxl")[0], presets=SMALL)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    for source, scale in ((file, 0.13025), (tmp_path / "vae", 0.18215), (tmp_path, 0.18215)):
        changed = open_vae(source).into(opened)
        assert changed.configs["vae"]["scaling_factor"] == scale
        read, _ = changed.read("vae", expected(changed.configs)["vae"])
        jax.tree.map(np.testing.assert_array_equal, read, params)


def swapped(original, path: Path, shift: float) -> None:
    source, params = original
    changed = open_vae(path).into(open_single_file(source, presets=SMALL))
    trees = expected(changed.configs)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b + np.float32(shift)),
        changed.read("vae", trees["vae"])[0],
        params["vae"],
    )
    jax.tree.map(np.testing.assert_array_equal, changed.read("unet", trees["unet"])[0], params["unet"])


def test_a_checkpoint_without_vae_takes_another(originals, tmp_path):
    path, params = originals("sd15")
    bare = open_single_file(edited(path, tmp_path / "a.safetensors", drop=lambda n: n.startswith(VAE)), presets=SMALL)
    with pytest.raises(CheckpointError, match="holds no vae; give one with vae="):
        bare.read("vae", expected(bare.configs)["vae"])
    assert "holds no VAE" in bare.notes[0]
    whole = open_vae(path).into(bare)
    assert whole.notes == ()
    jax.tree.map(np.testing.assert_array_equal, whole.read("vae", expected(whole.configs)["vae"])[0], params["vae"])


def test_what_is_no_vae(originals, tmp_path):
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.ones((2, 2), np.float32)}
    safetensors.numpy.save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="is a LoRA"):
        open_vae(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        open_vae(tmp_path)
    half = edited(originals("sd15")[0], tmp_path / "half.safetensors", drop=lambda n: "decoder" not in n)
    with pytest.raises(
        CheckpointError, match="half.safetensors holds a part of an autoencoder, without encoder.conv_in"
    ):
        open_vae(half)
    wide = edited(
        originals("sd15")[0], tmp_path / "w.safetensors", {f"{VAE}encoder.conv_in.bias": np.ones(9, np.float32)}
    )
    changed = open_vae(wide).into(open_single_file(originals("sd15")[0], presets=SMALL))
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.bias: expected \[8\], found \[9\]"):
        changed.read("vae", expected(changed.configs)["vae"])


# Bad input ------------------------------------------------------


@pytest.mark.parametrize(
    "names,what",
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_x.alpha"], "a LoRA"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA"),
        (["lora_unet_x.hada_w1_a"], "a LoRA"),
        (["emb_params"], "a textual-inversion embedding"),
        (["clip_g", "clip_l"], "a textual-inversion embedding"),
        (["<cat-toy>"], "a textual-inversion embedding"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], r"an autoencoder \(VAE\) alone: give it as vae="),
        (["first_stage_model.decoder.mid.attn_1.k.bias"], "an autoencoder"),
        (["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"], "a ControlNet"),
        (["zero_convs.0.0.weight", "input_blocks.0.0.weight"], "a ControlNet: .*sdjax.load_controlnet"),
        (["lora_controlnet", "input_blocks.0.0.up"], "a ControlNet"),
        (["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.up.0.bias"], "a ControlNet-LLLite"),
        (["body.0.body.0.block1.weight"], "a T2I-Adapter: .*sdjax.load_controlnet"),
        (["controlnet_cond_embedding.conv_in.bias", "down_blocks.0.resnets.0.norm1.bias"], "a ControlNet"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "a Flux model"),
        (["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "a Flux model"),
        (["model.diffusion_model.joint_blocks.0.context_block.attn.proj.bias"], "a Stable Diffusion 3 model"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.bias"], "a video model"),
        (["input_blocks.0.0.weight", "middle_block.0.in_layers.0.bias"], "a U-Net alone: it needs"),
        (["down_blocks.0.resnets.0.norm1.bias", "conv_in.weight"], "a U-Net alone, by diffusers' names"),
        (["text_model.encoder.layers.0.mlp.fc1.bias"], "a text encoder alone"),
        (["ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["body.0.rdb1.conv1.weight"], r"a picture upscaler \(ESRGAN\)"),
        (["model.diffusion_model.input_blocks.0.0.weight", "edm_mean"], "Playground"),
        (["model.diffusion_model.input_blocks.0.0.weight", "edm_vpred.sigma_max"], "CosXL"),
        (["model.diffusion_model.input_blocks.0.0.weight", "scaled_fp8"], "scaled 8-bit"),
        (["model.diffusion_model.input_blocks.0.0.weight", f"{UNET}time_embed.0.input_scale"], "scaled 8-bit"),
        (["model.diffusion_model.input_blocks.0.0.weight", f"{UNET}time_embed.0.SCB"], "a quantised model"),
        (["model.diffusion_model.input_blocks.0.0.weight", f"{UNET}out.2.weight.absmax"], "a quantised model"),
        (["model.diffusion_model.input_blocks.0.0.weight", f"{UNET}out.2.weight.quant_state.nf4"], "a quantised"),
        (["model.diffusion_model.input_blocks.0.0.weight", f"{UNET}out.2.qweight"], "a quantised model"),
        (["model_ema.diffusion_modelinput_blocks00weight"], "averaged weights alone"),
        (["unet.conv_in.weight", "unet.down_blocks.0.resnets.0.norm1.bias", "vae.encoder.conv_in.bias"], "a whole pip"),
        (["state_dict.control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["state_dict.model.diffusion_model.input_blocks.0.0.weight", "state_dict.edm_mean"], "Playground"),
        (["transformer.blocks.0.w", "head.bias"], r"(?s)no checkpoint that is known.*head.bias"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, names, what):
    safetensors.numpy.save_file(dict.fromkeys(names, ONE), tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", rf"x\.safetensors is .*{what}" if "(?s)" not in what else what)


def test_a_learnt_word_under_any_name(tmp_path):
    safetensors.numpy.save_file({"sks": np.ones((2, 768), np.float32)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "a textual-inversion embedding")


def test_a_checkpoint_without_its_u_net(originals, tmp_path):
    path = edited(originals("sd15")[0], tmp_path / "a.safetensors", drop=lambda n: n.startswith(UNET))
    refused(path, "without its U-Net .*holds a VAE and a text encoder. Take the whole file; its VAE alone can be given")
    averages = {"model_ema.diffusion_modelinput_blocks00weight": ONE}
    refused(
        edited(path, tmp_path / "b.safetensors", averages), r"and averages of one \(model_ema.\*\), which are not read"
    )


def test_text_encoders_by_transformers_names(originals, tmp_path):
    """Stable Diffusion 2's with the last layer and the projection of the whole CLIP, SDXL's second with its own."""
    for family, component, prefix in (("sd21", "text_encoder", ""), ("sdxl", "text_encoder_2", "text_encoder_2.")):
        path, params = originals(family)
        save_component(tmp_path / family, *components(SMALL[family])[component])
        theirs = safetensors.numpy.load_file(tmp_path / family / "model.safetensors")
        own = ("cond_stage_model.", "conditioner.embedders.1.")
        renamed = {f"{prefix}{name}": tensor for name, tensor in theirs.items()}
        if family == "sd21":
            renamed["text_projection.weight"] = np.ones((32, 32), np.float32)
            last = {n.replace("layers.1.", "layers.2."): t for n, t in renamed.items() if "layers.1." in n}
            assert len(last) == 16
            renamed |= last
        edited(path, tmp_path / "a.safetensors", renamed, drop=lambda n, own=own: n.startswith(own))
        opened = same_parameters(tmp_path / "a.safetensors", params)
        assert any("(17 tensors)" in note for note in opened.notes) == (family == "sd21")


def test_an_empty_file(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "holds no tensors")


def test_an_unknown_u_net_says_what_was_recognised_and_what_not(originals, tmp_path):
    path, _ = originals("sd15")
    fewer = edited(path, tmp_path / "a.safetensors", drop=lambda n: n.startswith(f"{UNET}input_blocks.4.1."))
    refused(
        fewer, r"Nearest is Stable Diffusion 1.x, but for: 1 blocks, as input_blocks.4.1 with nothing \(there 1 tran"
    )
    k = "attn2.to_k.weight"
    other = {n: np.ones((t.shape[0], 99), "f") for n, t in safetensors.numpy.load_file(path).items() if n.endswith(k)}
    refused(edited(path, tmp_path / "b.safetensors", other), r"text width 99 \(there 24\)")
    flat = edited(path, tmp_path / "d.safetensors", {f"{UNET}input_blocks.0.0.weight": np.ones((16, 0, 3, 3), "f")})
    refused(flat, "input_blocks.0.0.weight is missing or no convolution")
    cut = edited(path, tmp_path / "c.safetensors", drop=lambda n: n == f"{UNET}input_blocks.0.0.weight")
    refused(cut, "input_blocks.0.0.weight is missing")


def test_two_families_mixed(originals, tmp_path):
    sd15, sdxl = (safetensors.numpy.load_file(originals(family)[0]) for family in ("sd15", "sdxl"))
    text = {n: t for n, t in sdxl.items() if n.startswith("conditioner.")}
    refused(
        edited(originals("sd15")[0], tmp_path / "a.safetensors", text),
        r"(?s)another family's: two were mixed.*conditioner",
    )
    both = {n: t for n, t in sdxl.items() if n not in sd15}
    refused(edited(originals("sd15")[0], tmp_path / "b.safetensors", both), "of no family that is known")


def test_unknown_and_missing_parts(originals, tmp_path):
    path, _ = originals("sd15")
    alone = edited(path, tmp_path / "b.safetensors", drop=lambda n: not n.startswith(UNET))
    refused(alone, r"has the U-Net of Stable Diffusion 1.x, but no text_encoder \(cond_stage_model.\*\)")
    name = f"{UNET}input_blocks.1.0.in_layers.2.bias"
    opened = open_single_file(edited(path, tmp_path / "c.safetensors", drop=lambda n: n == name), presets=SMALL)
    with pytest.raises(CheckpointError, match=rf"(?s)1 missing.*{name}"):
        opened.read("unet", expected(opened.configs)["unet"])
    nan = edited(path, tmp_path / "d.safetensors", {name: np.full(16, np.nan, np.float32)})
    opened = open_single_file(nan, presets=SMALL)
    with pytest.raises(CheckpointError, match=rf"{name} holds nan"):
        opened.read("unet", expected(opened.configs)["unet"])


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_nan_in_a_third_of_a_fused_projection(originals, tmp_path, part):
    name = "conditioner.embedders.0.model.transformer.resblocks.1.attn.in_proj_bias"
    bias = np.zeros(120, np.float32)
    bias["qkv".index(part) * 40 + 7] = np.nan
    opened = open_single_file(
        edited(originals("sdxl_refiner")[0], tmp_path / "a.safetensors", {name: bias}), presets=SMALL
    )
    with pytest.raises(CheckpointError, match=rf"{name} holds nan \(element 7\)"):
        opened.read("text_encoder_2", expected(opened.configs)["text_encoder_2"])


def test_a_fused_projection_of_the_wrong_shape(originals, tmp_path):
    name = "conditioner.embedders.0.model.transformer.resblocks.1.attn.in_proj_bias"
    path = edited(originals("sdxl_refiner")[0], tmp_path / "a.safetensors", {name: np.zeros(80, np.float32)})
    opened = open_single_file(path, presets=SMALL)
    with pytest.raises(CheckpointError, match=r"1 of the wrong shape:\n.*in_proj_bias: expected \[120\], found \[80\]"):
        opened.read("text_encoder_2", expected(opened.configs)["text_encoder_2"])


@pytest.mark.parametrize(
    "name,start",
    [
        ("a.ckpt", b"x"),
        ("a.pt", b"x"),
        ("a.PT", b"x"),
        ("a.safetensors", b"PK\x03\x04" + bytes(8)),
        ("b.safetensors", b"\x80\x02}q\x00."),
    ],
)
def test_pickles_are_never_opened(tmp_path, name, start):
    (tmp_path / name).write_bytes(start)
    refused(tmp_path / name, "is a pickle. .* never is; look for its .safetensors")


@pytest.mark.parametrize(
    "content,what",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265146304\n",
         "is a Git LFS pointer, which stands for a file of 4,265,146,304 bytes: run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>", r"is a web page \('Sign in'\)"),
        (b"\n<HTML><BODY>403 Forbidden", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"is an XML document \('AccessDenied'\)"),
        (b'{"error":"Invalid username or password."}', "is JSON text that begins '{\"error\":\"Invalid username"),
        (b"Access to model x is restricted. You must log in.", "is a text file that begins 'Access to model"),
        (b"GGUF\x03\0\0\0" + bytes(20), "is a GGUF file"),
        (b"PK\x03\x04" + bytes(22) + b"\x0b\0\0\0model/a.txt", "is a zip archive that begins with 'model/a.txt'"),
        (b"PK\x03\x04" + bytes(22) + b"\x10\0\0\0archive/data.pkl", "is a pickle"),
        (b"\x1f\x8b\x08" + bytes(20), "is a gzip archive: unpack it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), r"is a picture \(PNG\)"),
        (bytes(5000), "is filled with zeros"),
        (b'\xef\xbb\xbf{"error":"no"}', "is JSON text that begins '{\"error\""),
        ("version https://git-lfs.github.com/spec/v1\r\nsize 12\r\n".encode("utf-16"),
         "is a Git LFS pointer, which stands for a file of 12 bytes"),
        (b"", r"\(0 bytes\) is truncated or corrupt: it is empty; download it again"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("door", [open_single_file, open_vae])
def test_what_is_no_safetensors_file_is_called_what_it_is(tmp_path, door, content, what):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors {what}"):
        door(tmp_path / "x.safetensors")


def test_a_header_is_read_only_where_its_size_is_a_checkpoint_s(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((1 << 26).to_bytes(8, "little") + b"{" + b" " * 100)
    refused(tmp_path / "a.safetensors", "header too large: 67,108,864 bytes")
    safetensors.numpy.save_file({f"input_blocks.{'9' * 20_000}.0.weight": ONE}, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "a tensor whose name has 20,022 characters")


def test_a_block_number_of_five_thousand_digits(originals, tmp_path):
    extra = {f"{UNET}input_blocks.{'9' * 5000}.0.op.bias": ONE}
    refused(edited(originals("sd15")[0], tmp_path / "a.safetensors", extra), "1 blocks, as input_blocks.999")


def test_truncated_and_missing(originals, tmp_path):
    content = originals("sd15")[0].read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        (tmp_path / "a.safetensors").write_bytes(content[:size])
        refused(tmp_path / "a.safetensors", "is truncated or corrupt")
    refused(tmp_path / "none.safetensors", "none.safetensors is missing")


@pytest.mark.parametrize("door", [open_checkpoint, open_single_file, open_vae])
def test_what_is_no_file_is_not_said_to_be_missing(tmp_path, door):
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, what in (("link", "is a link to nowhere, which is not there"), ("loop", "is a link"), ("pipe", "a pipe")):
        with pytest.raises(CheckpointError, match=f"{name}.safetensors.* {what}"):
            door(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("door", [open_checkpoint, open_single_file, open_vae, open_folder])
@pytest.mark.parametrize("name", ["", "a" * 5000, "~nobody-of-that-name/a", "a\0b", "models/" + "a" * 300])
def test_names_that_no_file_can_have(monkeypatch, door, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as error:
        door(name)
    assert len(str(error.value)) < 1000


def test_one_door_for_both(originals, tmp_path, monkeypatch):
    path, _ = originals("sd15")
    save_folder(tmp_path / "folder", components(SMALL["sd15"]), open_single_file(path, presets=SMALL).files)
    opened = open_checkpoint(tmp_path / "folder", prediction_type="v_prediction")
    assert opened.scheduler["prediction_type"] == "v_prediction"
    with pytest.raises(ValueError, match="unknown; nearest: 'epsilon'"):
        open_checkpoint(tmp_path / "folder", prediction_type="eps")
    with pytest.raises(CheckpointError, match="U-Net is of no family that is known"):  # it is small
        open_checkpoint(path)


def test_where_no_file_can_go(originals, tmp_path):
    preset = SMALL["sd15"]
    parts = components(preset)
    for name, match in (("a.ckpt", "let it end with .safetensors"), ("file/a.safetensors", "cannot be made")):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(CheckpointError, match=match):
            save_single_file(tmp_path / name, preset.configs, parts, preset.scheduler)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_loading_holds_little_more_than_the_parameters(tmp_path):
    """An 85 MB text encoder with fused projections: the peak over what it was, by the parameters' bytes."""
    text = SMALL["sdxl_refiner"].configs["text_encoder_2"]
    text = text | {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
    unet = SMALL["sdxl_refiner"].configs["unet"] | {
        "cross_attention_dim": 768, "projection_class_embeddings_input_dim": 768 + 40,
    }  # fmt: skip
    preset = replace(
        SMALL["sdxl_refiner"], configs=SMALL["sdxl_refiner"].configs | {"text_encoder_2": text, "unet": unet}
    )
    save_single_file(tmp_path / "a.safetensors", preset.configs, components(preset), preset.scheduler)
    (tmp_path / "configs.json").write_text(json.dumps(preset.configs))
    code = f"""
        import json, jax, numpy as np
        from dataclasses import replace
        from tests.single_files import SMALL, expected
        from sdjax.weights import open_single_file
        def peak():
            return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
        configs = json.load(open({str(tmp_path / "configs.json")!r}))
        presets = {{"x": replace(SMALL["sdxl_refiner"], configs=configs)}}
        opened, tree = open_single_file({str(tmp_path / "a.safetensors")!r}, presets=presets), expected(configs)
        jax.block_until_ready(jax.device_put(np.zeros(3)))
        before = peak()
        params, _ = opened.read("text_encoder_2", tree["text_encoder_2"])
        jax.block_until_ready(params)
        print((peak() - before) / sum(p.nbytes for p in jax.tree.leaves(params)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
