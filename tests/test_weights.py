"""Reading and writing checkpoints: strict, bit for bit, within the memory promised, never half-written."""

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sdjax
from sdjax.config import VaeConfig
from sdjax.core import tree
from sdjax.nn.shapes import expected_params
from sdjax.text import grammar
from sdjax.text.tokenizer_files import FILES
from sdjax.weights import (
    CheckpointError,
    default_layout,
    open_folder,
    read_component,
    read_index,
    read_json,
    save_component,
    save_folder,
    side_files,
)
from sdjax.weights.index import TOKENIZER_FILES
from sdjax.weights.load import SIXTY_FOUR_BITS
from sdjax.weights.tensors import pages_of
from sdjax.weights.write import Draft, write_tensors
from tests.checkpoints import make_checkpoint

UNET = "diffusion_pytorch_model.safetensors"
BF16 = np.dtype(jnp.bfloat16)
RNG = np.random.default_rng(0)

# What a file holds, in torch's order, and the same parameters as ours.
TENSORS = {
    "conv_in.weight": RNG.normal(size=(6, 4, 3, 3)).astype(np.float32),
    "conv_in.bias": RNG.normal(size=6).astype(np.float32),
    "down_blocks.0.resnets.1.conv_shortcut.weight": RNG.normal(size=(5, 4, 1, 1)).astype(np.float32),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight": RNG.normal(size=(3, 2)).astype(np.float32),
    "mid_block.attentions.0.norm.weight": RNG.normal(size=3).astype(np.float32),
    "token_embedding.weight": RNG.normal(size=(7, 3)).astype(np.float32),
}
EXPECTED = {
    "conv_in": {"kernel": (3, 3, 4, 6), "bias": (6,)},
    "down_blocks.0": {"resnets.1": {"conv_shortcut": {"kernel": (1, 1, 4, 5)}}},
    "mid_block": {
        "attentions.0": {
            "transformer_blocks.0": {"attn1": {"to_out.0": {"kernel": (2, 3)}}},
            "norm": {"scale": (3,)},
        }
    },
    "token_embedding": {"embedding": (7, 3)},
}


def structs(tree):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda s: isinstance(s, tuple))


def write(folder: Path, tensors=TENSORS, name=UNET, config='{"a": 1}\n', metadata=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / name, metadata or {"format": "pt"})
    (folder / "config.json").write_text(config)
    return folder


def write_shards(folder: Path, tensors=TENSORS, variant="", **index) -> Path:
    dot = f".{variant}" if variant else ""
    parts = [f"diffusion_pytorch_model{dot}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = sorted(tensors)
    held = {parts[0]: names[:3], parts[1]: names[3:]}
    for part, own in held.items():
        write(folder, {name: tensors[name] for name in own}, part)
    weight_map = {name: part for part, own in held.items() for name in own}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map | index}, indent=2)
    (folder / f"diffusion_pytorch_model.safetensors.index{dot}.json").write_text(text)
    return folder


def read(folder, **options):
    return read_component(folder, structs(EXPECTED), **options)


def same_folder(a: Path, b: Path) -> bool:
    """Equal byte for byte, files and all."""
    held = [{p.relative_to(x): p.read_bytes() for p in x.rglob("*") if p.is_file()} for x in (a, b)]
    return held[0] == held[1]


# Reading ------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_axes_are_ours_and_the_dtype_is_the_file_s(tmp_path, dtype):
    params, _ = read(write(tmp_path, {name: t.astype(dtype) for name, t in TENSORS.items()}))
    kernel = np.asarray(params["conv_in"]["kernel"])
    assert kernel.dtype == dtype
    np.testing.assert_array_equal(kernel, TENSORS["conv_in.weight"].astype(dtype).transpose(2, 3, 1, 0))
    block = params["mid_block"]["attentions.0"]
    linear = TENSORS["mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"].astype(dtype)
    np.testing.assert_array_equal(block["transformer_blocks.0"]["attn1"]["to_out.0"]["kernel"], linear.T)
    np.testing.assert_array_equal(block["norm"]["scale"], TENSORS["mid_block.attentions.0.norm.weight"].astype(dtype))
    np.testing.assert_array_equal(
        params["token_embedding"]["embedding"], TENSORS["token_embedding.weight"].astype(dtype)
    )
    assert jax.tree.structure(params) == jax.tree.structure(structs(EXPECTED))


def test_dtype_casts(tmp_path):
    params, _ = read(write(tmp_path), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {BF16}
    np.testing.assert_array_equal(params["conv_in"]["bias"], TENSORS["conv_in.bias"].astype(BF16))


def test_place_takes_each_array(tmp_path):
    params, _ = read(write(tmp_path), place=np.asarray)
    assert all(type(leaf) is np.ndarray and leaf.flags.writeable for leaf in jax.tree.leaves(params))


def test_shards(tmp_path):
    whole, _ = read(write(tmp_path / "whole"))
    parts, _ = read(write_shards(tmp_path / "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_variant_is_taken_when_asked_for(tmp_path):
    write(tmp_path)
    write(tmp_path, {n: t.astype(np.float16) for n, t in TENSORS.items()}, UNET.replace(".safe", ".fp16.safe"))
    assert read(tmp_path)[0]["conv_in"]["bias"].dtype == np.float32
    assert read(tmp_path, variant="fp16")[0]["conv_in"]["bias"].dtype == np.float16
    with pytest.raises(CheckpointError, match=r"no variant 'fp61' \(nearest: fp16\).*'fp16' and a file without"):
        read(tmp_path, variant="fp61")


def test_variant_in_shards(tmp_path):
    write_shards(tmp_path, {n: t.astype(np.float16) for n, t in TENSORS.items()}, variant="fp16")
    assert read(tmp_path, variant="fp16")[0]["conv_in"]["bias"].dtype == np.float16
    with pytest.warns(UserWarning, match="only the variant 'fp16'"):
        read(tmp_path)


def test_a_lone_variant_is_taken_with_a_warning_and_two_are_an_error(tmp_path):
    write(tmp_path, name=UNET.replace(".safe", ".fp16.safe"))
    with pytest.warns(UserWarning, match="only the variant 'fp16'"):
        read(tmp_path)
    write(tmp_path, name=UNET.replace(".safe", ".non_ema.safe"))
    with pytest.raises(CheckpointError, match=r"variant=: 'fp16', 'non_ema'"):
        read(tmp_path)


def test_a_symlinked_file_is_read_as_the_hub_s_cache_has_it(tmp_path):
    repository = tmp_path / "models--me--tiny"
    write(repository / "blobs")
    snapshot = repository / "snapshots" / "0123" / "unet"
    snapshot.mkdir(parents=True)
    for name in (UNET, "config.json"):
        (snapshot / name).symlink_to(f"../../../blobs/{name}")
    read(snapshot)
    (tmp_path / "mine").symlink_to(snapshot)  # a link that the user gives is the user's own
    read(tmp_path / "mine")
    (repository / "blobs" / UNET).rename(tmp_path / UNET)
    (repository / "blobs" / UNET).symlink_to(tmp_path / UNET)
    refused(
        snapshot,
        f"unet/{UNET} is a link, or lies behind one, that leads out of the checkpoint, to .*put the file itself there",
    )


def linked(path: Path, target: Path) -> None:
    """The file moved away and a link to it in its place."""
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        f"vae/{UNET}",
        "text_encoder",
        "tokenizer",
    ],
)
def test_links_out_of_a_checkpoint_are_refused(tmp_path, name):
    """Files and folders; nothing of what they lead to is read, so that no message shows it and no copy holds it."""
    make_checkpoint(tmp_path / "m")
    open_folder(tmp_path / "m")
    linked(tmp_path / "m" / name, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"m/{name}.*leads out of the checkpoint, to .*elsewhere.*cp -L"):
        open_folder(tmp_path / "m")


def test_links_within_a_checkpoint_are_followed(tmp_path):
    make_checkpoint(tmp_path / "m")
    linked(tmp_path / "m" / "unet" / UNET, tmp_path / "m" / "shared.safetensors")
    open_folder(tmp_path / "m")


def test_what_is_not_a_checkpoint_s_is_neither_read_nor_copied(tmp_path):
    """Not a link to a secret, nor notes, nor a pipe that would be waited for."""
    make_checkpoint(tmp_path / "m")
    known = set(open_folder(tmp_path / "m").files)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "m" / "tokenizer" / "notes.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "m" / "tokenizer" / ".env").write_text("TOKEN=1")
    (tmp_path / "m" / "scheduler" / "diary.md").write_text("mine")
    os.mkfifo(tmp_path / "m" / "tokenizer" / "pipe.json")
    assert set(open_folder(tmp_path / "m").files) == known


def test_the_tokenizer_s_files_are_those_that_it_reads():
    assert set(TOKENIZER_FILES) == {*FILES, grammar.FILE}


# Git LFS's own specification, a storage server's answer and a web page, where a file of a checkpoint should be.
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265146304\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Log in</title></head>"


@pytest.mark.parametrize("name", [f"unet/{UNET}", "unet/config.json", "tokenizer/merges.txt", "model_index.json"])
@pytest.mark.parametrize(
    "text,match", [(POINTER, "a Git LFS pointer.*git lfs pull"), (PAGE, r"a web page \('Log in'\)")]
)
def test_what_stands_in_a_file_s_place_is_called_what_it_is(tmp_path, name, text, match):
    make_checkpoint(tmp_path / "m")
    (tmp_path / "m" / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} is {match}"):
        open_folder(tmp_path / "m")


@pytest.mark.parametrize("wrapper", ["module.", "state_dict.model.", "_orig_mod."])
@pytest.mark.parametrize("make", [write, write_shards])
def test_a_wrapper_before_all_names_is_read_through_and_goes_back(tmp_path, wrapper, make):
    make(tmp_path / "in", {f"{wrapper}{name}": tensor for name, tensor in TENSORS.items()})
    params, layout = read(tmp_path / "in")
    jax.tree.map(np.testing.assert_array_equal, params, read(write(tmp_path / "plain"))[0])
    save_component(tmp_path / "out", params, layout)
    assert same_folder(tmp_path / "in", tmp_path / "out")
    half = {f"{wrapper}{name}" if name < "d" else name: tensor for name, tensor in TENSORS.items()}
    refused(write(tmp_path / "half", half), r"(?s)2 missing.*2 unexpected")


def test_sixty_four_bits_in_a_folder(tmp_path):
    make_checkpoint(tmp_path / "m", dtype=np.float32)
    path = tmp_path / "m" / "vae" / UNET
    tensors = safetensors.numpy.load_file(path)
    wide = tensors["encoder.conv_in.bias"].astype(np.float64) / 3
    safetensors.numpy.save_file(tensors | {"encoder.conv_in.bias": wide}, path)
    opened = open_folder(tmp_path / "m")
    assert opened.notes == (f"vae is {SIXTY_FOUR_BITS}",)
    config = {"vae": VaeConfig.from_dict(opened.configs["vae"])}
    found, _ = opened.read("vae", expected_params(config)["vae"])
    np.testing.assert_array_equal(found["encoder"]["conv_in"]["bias"], wide.astype(np.float32), strict=True)


def test_a_folder_with_a_single_file_says_to_give_the_file(tmp_path):
    write(tmp_path, name="v1-5-pruned.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)model_index.json is missing.*v1-5-pruned.*give its own path"):
        open_folder(tmp_path)


OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("old,square", [(False, False), (True, False), (True, True)])
def test_the_vae_s_attention_by_its_old_names_goes_back_as_it_was(tmp_path, old, square):
    top, tensors, expected = "encoder.mid_block.attentions.0", {}, {}
    for new, name in OLD_VAE.items():
        weight = RNG.normal(size=(4, 4)).astype(np.float32)
        tensors[f"{top}.{name if old else new}.weight"] = weight[..., None, None] if square else weight
        tensors[f"{top}.{name if old else new}.bias"] = weight[0]
        expected[new] = {"kernel": (4, 4), "bias": (4,)}
    expected = {"encoder": {"mid_block": {"attentions.0": expected}}}
    params, layout = read_component(write(tmp_path / "in", tensors), structs(expected))
    query = tensors[f"{top}.{'query' if old else 'to_q'}.weight"].reshape(4, 4)
    np.testing.assert_array_equal(params["encoder"]["mid_block"]["attentions.0"]["to_q"]["kernel"], query.T)
    save_component(tmp_path / "out", params, layout)
    assert same_folder(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "top, prefix", [("text_model", "text_model."), ("text_model", ""), ("vision_model", "vision_model.")]
)
def test_clip_with_and_without_prefix_and_position_ids(tmp_path, top, prefix):
    tensors = {
        f"{prefix}final_layer_norm.weight": np.ones(3, np.float32),
        f"{prefix}embeddings.position_ids": np.arange(5)[None],
    }
    write(tmp_path / "in", tensors, "model.safetensors")
    expected = structs({top: {"final_layer_norm": {"scale": (3,)}}})
    params, layout = read_component(tmp_path / "in", expected)
    assert params[top]["final_layer_norm"]["scale"].shape == (3,)
    assert [name for _, name in layout.kept] == [f"{prefix}embeddings.position_ids"]
    save_component(tmp_path / "out", params, layout)
    assert same_folder(tmp_path / "in", tmp_path / "out")


def test_loading_holds_little_more_than_the_parameters(tmp_path):
    """A 200 MB file: the peak of the whole process, file pages counted, over what it was."""
    tensors = {f"blocks.{i}.weight": np.full((640, 640, 3, 3), 0.5, np.float32) for i in range(14)}
    write(tmp_path, tensors)
    code = f"""
        import jax, numpy as np
        from sdjax.weights import read_component
        def peak():
            return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
        leaf = jax.ShapeDtypeStruct((3, 3, 640, 640), np.float32)
        jax.block_until_ready(jax.device_put(np.zeros(3)))
        before = peak()
        expected = {{f"blocks.{{i}}": {{"kernel": leaf}} for i in range(14)}}
        params, _ = read_component({str(tmp_path)!r}, expected)
        jax.block_until_ready(params)
        print((peak() - before) / sum(p.nbytes for p in jax.tree.leaves(params)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


# Bad input ------------------------------------------------------


def refused(folder, match, **options):
    with pytest.raises(CheckpointError, match=match):
        read(folder, **options)


def test_missing_tensor_names_it_and_the_nearest(tmp_path):
    tensors = dict(TENSORS)
    tensors["conv_inn.weight"] = tensors.pop("conv_in.weight")
    refused(write(tmp_path, tensors), r"(?s)1 missing.*conv_in.weight \(nearest: conv_inn.weight\).*1 unexpected")


def test_unexpected_tensors_are_listed_in_part(tmp_path):
    extra = {f"loss.{i}.weight": np.ones(1, np.float32) for i in range(20)}
    refused(write(tmp_path, TENSORS | extra), r"(?s)20 unexpected.*loss.0.weight.*and 12 more")


def test_wrong_shape_says_both(tmp_path):
    bad = {"conv_in.weight": np.ones((6, 9, 3, 3), np.float32)}
    refused(write(tmp_path, TENSORS | bad), r"conv_in.weight: expected \[6, 4, 3, 3\], found \[6, 9, 3, 3\]")


@pytest.mark.parametrize("name,shape", [("conv_shortcut", (5, 4)), ("to_out.0", (3, 2, 1, 1))])
def test_a_convolution_is_no_linear_layer(tmp_path, name, shape):
    full = next(n for n in TENSORS if name in n and n.endswith("weight"))
    refused(write(tmp_path, TENSORS | {full: np.ones(shape, np.float32)}), "1 of the wrong shape")


def test_wrong_dtype(tmp_path):
    refused(
        write(tmp_path, TENSORS | {"conv_in.bias": np.ones(6, np.int8)}),
        "conv_in.bias: expected F16 .* found I8",
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path, dtype, value):
    bias = TENSORS["conv_in.bias"].copy()
    bias[3] = value
    tensors = {name: t.astype(dtype) for name, t in (TENSORS | {"conv_in.bias": bias}).items()}
    refused(write(tmp_path, tensors), rf"{UNET}: conv_in.bias holds {value} \(element 3\)")


def test_a_cast_that_overflows(tmp_path):
    bias = np.full(6, 1e5, np.float32)
    refused(write(tmp_path, TENSORS | {"conv_in.bias": bias}), "conv_in.bias, cast to float16", dtype=np.float16)


def test_names_and_shapes_are_settled_before_any_weight_is_read(tmp_path):
    tensors = TENSORS | {
        "conv_in.bias": np.full(6, np.nan, np.float32),
        "token_embedding.weight": np.ones((9, 3), "f"),
    }
    refused(write(tmp_path, tensors), r"token_embedding.weight: expected \[7, 3\]")


def test_truncated(tmp_path):
    for size in (0, 5, 100, 900):
        os.truncate(write(tmp_path) / UNET, size)
        refused(tmp_path, f"{UNET} .{size} bytes. is truncated or corrupt")


def corrupt(folder: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    write(folder)
    size = len(header) if length is None else length
    (folder / UNET).write_bytes(struct.pack("<Q", size) + header + data)
    return folder


@pytest.mark.parametrize(
    "shape,offsets,size",
    [
        ([6], [0, 48], 24),
        ([7], [0, 24], 24),
        ([6], [0, 24], 4000),
        ([6], [8, 32], 32),
        ([2**40, 2**40], [0, 24], 24),
    ],
)
def test_a_header_that_lies(tmp_path, shape, offsets, size):
    header = {"conv_in.bias": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    refused(corrupt(tmp_path, json.dumps(header).encode(), bytes(size)), "is truncated or corrupt")


def test_headers_of_garbage(tmp_path):
    entry = b'{"dtype":"F32","shape":[6],"data_offsets":[0,24]}'
    refused(corrupt(tmp_path, b"{}", b"", length=2**62), "header too large")
    refused(corrupt(tmp_path, b"not json", b""), "corrupt")
    refused(corrupt(tmp_path, b'{"a":' + entry + b',"a":' + entry + b"}", bytes(24)), "names 'a' twice")
    refused(corrupt(tmp_path, entry, bytes(24)), "corrupt")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "pytorch_model.pt"])
def test_pickles_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    refused(tmp_path, rf"pickles only \({name}\).*safe_serialization=True")


def test_missing_folder_weights_and_config(tmp_path):
    refused(tmp_path / "unet", "unet is missing")
    refused(tmp_path, "holds no diffusion_pytorch_model.safetensors .* it is empty")
    write(tmp_path)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "config.json is missing; the folder holds: diffusion_pytorch")


def test_single_file_beside_an_index(tmp_path):
    refused(write_shards(write(tmp_path)), "which one counts")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/../../b.safetensors",
        "..",
        "C:\\x.safetensors",
        7,
    ],
)
def test_an_index_that_leads_outside_the_folder(tmp_path, name):
    write(tmp_path, name="secret.safetensors")
    refused(
        write_shards(tmp_path / "unet", **{"conv_in.bias": name}),
        "only name .safetensors files of its own folder",
    )


def test_an_index_that_is_wrong(tmp_path):
    second = "diffusion_pytorch_model-00002-of-00002.safetensors"
    refused(write_shards(tmp_path / "a", **{"conv_in.bias": second}), "names tensors that its files do not hold")
    refused(write_shards(tmp_path / "b", ghost=second), r"(?s)do not hold.*ghost \(in diff")
    folder = write_shards(tmp_path / "c")
    (folder / second).unlink()
    refused(folder, f"{second} is missing; the download may be incomplete")
    folder = write_shards(tmp_path / "d")
    later = {n: TENSORS[n] for n in sorted(TENSORS)[3:]}
    write(folder, later | {"conv_in.bias": TENSORS["conv_in.bias"]}, second)
    refused(folder, f"(?s)duplicate or unknown.*conv_in.bias in {second}")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": []}')
    refused(folder, "has no weight_map")


def test_json_errors_name_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "e.json").write_text("[" * 100_000)
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    for name, match in (
        ("e", "not valid JSON"),
        ("a", "not valid JSON"),
        ("b", "JSON object"),
        ("c", "cannot be read"),
        ("d", "is missing"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}.json.*{match}"):
            read_json(tmp_path / f"{name}.json")


# model_index.json ------------------------------------------------------

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def index_of(folder: Path, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX | changes))
    return read_index(folder)


def test_model_index(tmp_path):
    index = index_of(tmp_path)
    assert index.components["scheduler"] == "PNDMScheduler"
    assert index.ignored == ("safety_checker",)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    files = side_files(index)
    assert files["scheduler/scheduler_config.json"] == b"{}"
    assert json.loads(files["model_index.json"]) == INDEX | {"safety_checker": [None, None]}
    untouched = side_files(index_of(tmp_path, safety_checker=[None, None]))
    assert untouched["model_index.json"] == (tmp_path / "model_index.json").read_bytes()


TEXT_2 = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": INDEX["tokenizer"]}
NO_TEXT_1 = {"text_encoder": [None, None], "tokenizer": [None, None]}


@pytest.mark.parametrize(
    "pipeline,changes,text",
    [
        ("StableDiffusionXLPipeline", TEXT_2, ["text_encoder", "text_encoder_2"]),
        ("StableDiffusionXLImg2ImgPipeline", TEXT_2 | NO_TEXT_1, ["text_encoder_2"]),
        ("StableDiffusionInpaintPipeline", {}, ["text_encoder"]),
        ("LatentConsistencyModelPipeline", {"scheduler": ["diffusers", "LCMScheduler"]}, ["text_encoder"]),
    ],
)
def test_other_pipelines_and_their_text_encoders(tmp_path, pipeline, changes, text):
    index = index_of(tmp_path, _class_name=pipeline, requires_aesthetics_score=True, **changes)
    assert [name for name in index.components if name.startswith("text")] == text
    assert sum(name.startswith("tokenizer") for name in index.components) == len(text)
    assert json.loads(side_files(index)["model_index.json"])["requires_aesthetics_score"] is True


def test_what_is_left_alone_is_named_and_an_upscaler_keeps_its_second_scheduler(tmp_path):
    upscaler = {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "watermarker": ["x", "Watermark"]}
    index = index_of(tmp_path, _class_name="StableDiffusionUpscalePipeline", **upscaler)
    assert index.ignored == ("safety_checker", "low_res_scheduler", "watermarker")
    (tmp_path / "low_res_scheduler").mkdir()
    (tmp_path / "low_res_scheduler" / "scheduler_config.json").write_text("{}")
    files = side_files(index)
    assert files["low_res_scheduler/scheduler_config.json"] == b"{}"
    written = json.loads(files["model_index.json"])
    assert written["low_res_scheduler"][1] == "DDPMScheduler" and written["watermarker"] == [None, None]


@pytest.mark.parametrize(
    "changes,match",
    [
        (TEXT_2 | {"tokenizer_2": [None, None]}, "tokenizer_2 is 'missing'"),
        (NO_TEXT_1, "text_encoder is 'missing'"),
        ({"tokenizer": [None, None]}, "tokenizer is 'missing'"),
        (
            {"_class_name": "FluxPipeline"},
            "'FluxPipeline' is not supported; supported: StableDiffusionPipeline, ",
        ),
        (
            {"unet": ["diffusers", "UNet3DConditionModel"]},
            "unet is 'UNet3DConditionModel'; supported: UNet2DCond",
        ),
        (
            {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            "scheduler is 'FlowMatch.*supported: DDIM",
        ),
        ({"vae": [None, None]}, "vae is 'missing'"),
        (
            {"unett": ["diffusers", "UNet2DConditionModel"]},
            r"component 'unett' is not known \(nearest: unet\)",
        ),
    ],
)
def test_unsupported_model_index(tmp_path, changes, match):
    with pytest.raises(CheckpointError, match=match):
        index_of(tmp_path, **changes)


def test_an_open_folder_has_read_no_weight(tmp_path):
    """Configs, index and headers are checked at once, and what is left alone is told; numbers come when asked for."""
    parts, files = checkpoint(tmp_path)
    config = {"scheduler/scheduler_config.json": b'{"prediction_type": "epsilon"}', "tokenizer/vocab.json": b"{}"}
    all_parts = {name: parts["unet"] for name in ("text_encoder", "unet", "vae")}
    save_folder(tmp_path / "m", all_parts, files | config | {"model_index.json": json.dumps(INDEX).encode()})
    opened = open_folder(tmp_path / "m")
    assert opened.configs["vae"] == {"a": 1} and opened.tokenizer("tokenizer") == {"vocab.json": b"{}"}
    assert "safety_checker" in opened.notes[0] and opened.index["safety_checker"] == [None, None]
    jax.tree.map(np.testing.assert_array_equal, opened.read("unet", structs(EXPECTED))[0], parts["unet"][0])
    assert opened.with_scheduler(prediction_type="sample").scheduler["prediction_type"] == "sample"
    weights = tmp_path / "m" / "vae" / UNET
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="vae/.* is truncated or corrupt"):
        open_folder(tmp_path / "m")


# Writing ------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("make", [write, write_shards])
def test_what_was_loaded_is_saved_byte_for_byte(tmp_path, dtype, make):
    make(tmp_path / "in", {name: t.astype(dtype) for name, t in TENSORS.items()})
    params, layout = read(tmp_path / "in")
    save_component(tmp_path / "out", params, layout)
    assert same_folder(tmp_path / "in", tmp_path / "out")


def test_float16_that_was_computed_in_float32_goes_back_to_float16(tmp_path):
    write(tmp_path / "in", {name: t.astype(np.float16) for name, t in TENSORS.items()})
    params, layout = read(tmp_path / "in", dtype=np.float32)
    save_component(tmp_path / "out", params, layout)
    assert same_folder(tmp_path / "in", tmp_path / "out")
    trained = jax.tree.map(lambda p: p * 1.0001, params)
    save_component(tmp_path / "trained", trained, layout)
    again, _ = read(tmp_path / "trained")
    jax.tree.map(np.testing.assert_array_equal, again, trained)


def test_parameters_that_were_narrowed_are_not_widened(tmp_path):
    params, layout = read(write_shards(tmp_path / "in"), dtype=jnp.bfloat16)
    save_component(tmp_path / "out", params, layout)
    again, _ = read(tmp_path / "out")
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {BF16}
    jax.tree.map(np.testing.assert_array_equal, again, params)
    index = read_json(tmp_path / "out" / "diffusion_pytorch_model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 2 * sum(t.size for t in TENSORS.values())


@pytest.mark.parametrize("metadata", [None, [1]])
def test_an_index_whose_metadata_are_none(tmp_path, metadata):
    name = "diffusion_pytorch_model.safetensors.index.json"
    path = write_shards(tmp_path / "in") / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": metadata}))
    params, layout = read(tmp_path / "in", dtype=jnp.bfloat16)
    save_component(tmp_path / "out", params, layout)
    size = 2 * sum(t.size for t in TENSORS.values())
    assert read_json(tmp_path / "out" / name)["metadata"] == {"total_size": size}


def test_a_component_that_was_never_loaded(tmp_path):
    params = jax.tree.map(lambda s: jnp.ones(s.shape, jnp.float16), structs(EXPECTED))
    save_component(tmp_path, params, default_layout(params, {"b": 2}))
    again, _ = read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert read_json(tmp_path / "config.json") == {"b": 2}
    text = {"text_model": {"final_layer_norm": {"scale": np.ones(2, np.float32)}}}
    save_component(tmp_path / "text", text, default_layout(text, {}))
    stored = safetensors.numpy.load_file(tmp_path / "text" / "model.safetensors")
    assert list(stored) == ["text_model.final_layer_norm.weight"]


def test_the_writer_is_safetensors_own(tmp_path):
    """Byte for byte what safetensors.numpy writes, for every dtype that a component's file may hold."""
    arrays = [RNG.normal(size=(3, 5)).astype(dtype) for dtype in (np.float16, BF16, np.float32, np.float64)]
    arrays += [
        np.arange(7).reshape(1, 7),
        np.zeros(0, np.float32),
        np.float32(3),
        np.ones(2, np.uint8),
        np.ones(1, bool),
    ]
    tensors = {f"t{i}.ä": np.asarray(array) for i, array in enumerate(arrays)}
    for metadata in ({}, {"format": "pt"}):
        safetensors.numpy.save_file(tensors, tmp_path / "theirs", metadata or None)
        write_tensors({name: Draft.of(array) for name, array in tensors.items()}, metadata, tmp_path / "ours")
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_parameters_that_are_not_the_layout_s(tmp_path):
    params, layout = read(write(tmp_path / "in"))
    for changed, match in (
        ({k: v for k, v in params.items() if k != "conv_in"}, "2 parameters are missing"),
        (params | {"extra": {"bias": np.ones(1, np.float32)}}, "1 parameters are unknown"),
        (params | {"conv_in": {**params["conv_in"], "bias": np.ones(9, np.float32)}}, "wrong shape"),
        (
            params | {"conv_in": {**params["conv_in"], "bias": np.ones(6, np.float64)}},
            "conv_in.bias is float64",
        ),
    ):
        with pytest.raises(CheckpointError, match=match):
            save_component(tmp_path / "out", changed, layout)
    assert not (tmp_path / "out").exists()


def checkpoint(folder: Path):
    params, layout = read(write(folder / "source"))
    return {"unet": (params, layout)}, {"model_index.json": b"{}", "tokenizer/vocab.json": b"{}"}


def test_save_folder(tmp_path):
    components, files = checkpoint(tmp_path)
    out = tmp_path / "deep" / "out"
    save_folder(out, components, files)
    assert same_folder(out / "unet", tmp_path / "source")
    assert (out / "tokenizer" / "vocab.json").read_bytes() == b"{}"
    (out / "README.md").write_text("mine")
    (out / "unet" / "stale.safetensors").write_text("old")
    save_folder(out, components, files)
    assert same_folder(out / "unet", tmp_path / "source")
    assert (out / "README.md").read_text() == "mine"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_save_folder_refuses_what_it_would_destroy(tmp_path):
    components, files = checkpoint(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="other files and no checkpoint"):
        save_folder(tmp_path / "home", components, files)
    with pytest.raises(CheckpointError, match="is a file"):
        save_folder(tmp_path / "home" / "thesis.txt", components, files)
    with pytest.raises(CheckpointError, match="cannot be made"):
        save_folder(tmp_path / "home" / "thesis.txt" / "out", components, files)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        save_folder(tmp_path / "new", components, {"../x": b""})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "source"]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on file size stands for the full disk: the old checkpoint survives, no partial file does."""
    components, files = checkpoint(tmp_path)
    save_folder(tmp_path / "out", components, files)
    code = f"""
        import resource, signal
        import jax
        import tests.test_weights as here
        from pathlib import Path
        components, files = here.checkpoint(Path({str(tmp_path)!r}))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            here.save_folder({str(tmp_path / "out")!r}, components, files)
        except here.CheckpointError as error:
            assert "cannot be written" in str(error), error
            print("refused")
    """
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "refused"
    assert same_folder(tmp_path / "out" / "unet", tmp_path / "source")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_no_warning_in_ordinary_use(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(write(tmp_path))


# ---------------------------------------------------------------------- parameters that stay in their file


def test_a_narrow_model_leaves_its_parameters_in_the_file(tiny_checkpoint):
    """Only what is computed with is in memory; what was stored is a view of the file, and whole."""
    narrow = sdjax.load(tiny_checkpoint, dtype="bfloat16", compilation_cache=False)
    assert all(pages_of(leaf) is not None for leaf in jax.tree.leaves(narrow.params))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dict(narrow.networks.params))} == {"bfloat16"}
    wide = sdjax.load(tiny_checkpoint, compilation_cache=False)
    jax.tree.map(np.testing.assert_array_equal, narrow.params, wide.params)
    assert wide.params is wide.networks.stored  # and in float32 there is one tree for both
    cast = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), wide.params)
    jax.tree.map(np.testing.assert_array_equal, dict(narrow.networks.params), cast)


def test_a_narrow_model_is_saved_bit_for_bit_even_over_its_own_file(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "own")
    narrow = sdjax.load(tmp_path / "own", dtype="bfloat16", compilation_cache=False)
    for folder in ("own", "other", "own"):
        narrow.save(tmp_path / folder)
    for path in (path for path in tiny_checkpoint.rglob("*") if path.is_file()):
        for folder in ("own", "other"):
            assert (tmp_path / folder / path.relative_to(tiny_checkpoint)).read_bytes() == path.read_bytes(), path


def test_a_file_that_was_written_to_since_is_not_saved_as_if_it_were_the_same(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "own")
    narrow = sdjax.load(tmp_path / "own", dtype="bfloat16", compilation_cache=False)
    file = next((tmp_path / "own" / "unet").glob("*.safetensors"))
    with open(file, "r+b") as opened:
        opened.truncate(100)
    with pytest.raises(CheckpointError, match=f"{file} has been written to since it was loaded"):
        narrow.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_replacing_parameters_casts_only_those_that_are_new(tiny_checkpoint):
    sd = sdjax.load(tiny_checkpoint, dtype="bfloat16", compilation_cache=False)
    params = {
        **sd.params,
        "unet": {**sd.params["unet"], "conv_out": jax.tree.map(np.negative, sd.params["unet"]["conv_out"])},
    }
    other = dataclasses.replace(sd, params=params)
    before, after = (tree.flatten(dict(one.networks.params)) for one in (sd, other))
    changed = {path for path in before if before[path] is not after[path]}
    assert changed == {("unet", "conv_out", "kernel"), ("unet", "conv_out", "bias")}
    np.testing.assert_array_equal(after["unet", "conv_out", "bias"], -before["unet", "conv_out", "bias"])
