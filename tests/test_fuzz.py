"""Damaged checkpoints load right or are refused in words: a selection of `experiments.fuzz_checkpoints`, and each
fault that it has found."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import sdjax
from experiments.fuzz_door import Door, Wrong, judge, make_bases, run_case
from experiments.fuzz_mutations import file_of, put_together, take_apart, tensors_of
from sdjax.nn import shapes
from sdjax.weights import CheckpointError, open_vae, source

CASES = 120
CONFIGS = {"unet": "unet/config.json", "vae": "vae/config.json", "text": "text_encoder/config.json"}


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """With one single file; what a Door changes in the package is put back."""
    bases = tmp_path_factory.mktemp("bases")
    make_bases(bases, ["bk_sdm_tiny"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "expected_params", shapes.expected_params)
        patch.setattr(source, "open_single_file", source.open_single_file)
        yield Door(bases)


@pytest.fixture
def folder(door, tmp_path) -> Path:
    return Path(shutil.copytree(door.bases / "folder", tmp_path / "folder"))


def refused(path: Path, match: str, error: type[Exception] = CheckpointError, **options) -> str:
    begun = time.process_time()
    with pytest.raises(error, match=match) as caught:
        sdjax.load(path, compilation_cache=False, **options)
    assert time.process_time() - begun < 10
    message = str(caught.value)
    assert len(message) < 4000 and message.replace("\n", "").isprintable()
    return message


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_selection(door):
    results = [run_case(door, 1, case) for case in range(CASES)]
    assert [result for result in results if result.outcome not in ("loaded", "refused")] == []
    counts = {what: sum(result.outcome == what for result in results) for what in ("loaded", "refused")}
    assert counts["loaded"] > CASES // 10 and counts["refused"] > CASES // 2


# That it can see a fault --------------------------------------------------


def test_other_numbers_are_seen(door):
    base = door.bases / "folder"
    params = door.open(base)
    door.check(base, params)
    kernel = np.array(params["unet"]["conv_in"]["kernel"])
    kernel[0, 0, 0, 0] += 1
    params["unet"]["conv_in"] = params["unet"]["conv_in"] | {"kernel": kernel}
    with pytest.raises(Wrong, match="unet.conv_in.kernel is not what conv_in.weight holds"):
        door.check(base, params)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (KeyError("shape"), "WRONG ERROR"),
        (CheckpointError("'NoneType' object has no attribute 'get'"), "UNCLEAR"),
        (CheckpointError("it is broken"), "NAMES NOTHING"),
        (CheckpointError("a.safetensors holds \x1b[2J"), "UNREADABLE"),
        (CheckpointError("a.safetensors is truncated"), "refused"),
    ],
)
def test_what_counts_as_a_clear_error(error, verdict):
    def raised(error):
        try:
            raise error
        except type(error) as caught:
            return caught

    ours = {"__name__": "sdjax.somewhere", "raised": raised}
    exec("def call(error):\n  try:\n    raise error\n  except Exception as caught:\n    return caught", ours)
    assert judge(ours["call"](error), Path("a.safetensors")) == verdict
    assert judge(raised(type(error)(*error.args)), Path("a.safetensors")) == "WRONG ERROR"  # not raised by us


# What it has found --------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values", "match"),
    [
        ("unet", {"block_out_channels": [10**9, 10**9]}, "unet/config.json: block_out_channels must be a whole number"),
        ("unet", {"block_out_channels": [8] * 40}, "block_out_channels must be 1 to 8 entries"),
        ("unet", {"transformer_layers_per_block": 10**6}, "transformer_layers_per_block has 1000000 for a level"),
        ("unet", {"transformer_layers_per_block": 100}, "must be at most 256 layers in all"),
        ("unet", {"layers_per_block": 10**6}, "layers_per_block must be a whole number from 1 to 16, not 1000000"),
        ("unet", {"norm_num_groups": 0}, "norm_num_groups must be a whole number of at least 1"),
        ("unet", {"norm_num_groups": 3}, "block_out_channels 8 is no multiple of norm_num_groups 3"),
        ("unet", {"attention_head_dim": 3}, "block_out_channels 8 is no multiple of attention_head_dim 3"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_time_embed_dim, projection_class.* missing"),
        ("unet", {"down_block_types": 3}, "down_block_types must be a list, not 3"),
        ("unet", {"upcast_attention": "false"}, "upcast_attention must be true or false, not 'false'"),
        ("unet", {"norm_eps": float("nan")}, "norm_eps must be a number from 0 to 1, not nan"),
        ("unet", {"cross_attention_dim": 24}, "cross_attention_dim is 24, and what it attends to .* is 16 wide"),
        ("vae", {"latent_channels": 8}, "latent_channels is 8, and the U-Net gives 4"),
        ("vae", {"scaling_factor": "x" * 20_000}, "scaling_factor must be a number from 1e-06 to 1e[+]06, not 'xxx"),
        ("text", {"num_hidden_layers": 10**6}, "num_hidden_layers must be a whole number from 1 to 256"),
        ("text", {"hidden_size": -8}, "hidden_size must be a whole number of at least 1"),
        ("text", {"num_attention_heads": 3}, "hidden_size 16 is no multiple of num_attention_heads 3"),
        ("text", {"architectures": 1}, "text_encoder/config.json: architectures must be a list, not 1"),
    ],
)
def test_values_of_a_config(folder, file, values, match):
    change(folder / CONFIGS[file], **values)
    refused(folder, match, sdjax.ConfigError)


@pytest.mark.parametrize("value", [None, "x", 10**9, 0, 1.5])
def test_timesteps_of_a_scheduler(folder, value):
    change(folder / "scheduler/scheduler_config.json", num_train_timesteps=value)
    if value is None:  # counts as absent
        assert sdjax.load(folder, compilation_cache=False).plan("ddim", 2).steps == 2
    else:
        refused(
            folder, "scheduler_config.json: num_train_timesteps must be a whole number from 1 to", sdjax.ConfigError
        )


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("beta_start", [1], "a number from 0 to 0.999, not \\[1\\]"),
        ("beta_end", -0.988, "a number from 0 to 0.999, not -0.988"),  # else the root of a negative number
        ("sigma_max", "14", "a number, not '14'"),
        ("trained_betas", [[0.1]], "a list of numbers, not \\[\\[0.1\\]\\]"),
        ("clip_sample", "no", "true or false, not 'no'"),
        ("beta_schedule", "x" * 20_000, "a short text, not 'xxx"),
    ],
)
def test_values_of_a_scheduler(folder, key, value, match):
    change(folder / "scheduler/scheduler_config.json", **{key: value})
    refused(folder, f"scheduler/scheduler_config.json: {key} must be {match}", sdjax.ConfigError)


def test_values_of_the_index(folder):
    change(folder / "model_index.json", _guidance_scale="high")
    refused(folder, "model_index.json: _guidance_scale must be a number", sdjax.ConfigError)
    change(folder / "model_index.json", _guidance_scale=5, _class_name="x" * 20_000)
    refused(folder, "_class_name 'xxx.*xxx[.]{3} is not supported")


def test_a_tokenizer_that_is_missing_or_another_encoders(folder):
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    change(folder / "tokenizer/vocab.json", red=len(vocab))
    refused(folder, "tokenizer does not belong to text_encoder/config.json: it needs a vocab_size of at least")
    (folder / "tokenizer/vocab.json").unlink()
    refused(folder, "vocab.json is missing")


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{Path(name).name} is (no file|missing)")


def test_a_pipe_as_a_single_file(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "a.safetensors is no file but a pipe")
    with pytest.raises(CheckpointError, match="a.safetensors is no file but a pipe"):
        open_vae(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["vae/config.json", "tokenizer/vocab.json"])
def test_a_text_of_a_gigabyte_is_not_read(folder, name):
    os.truncate(folder / name, 1 << 30)  # takes no disk
    refused(folder, "json has 1,073,741,824 bytes, far too many")


def edited(folder: Path, change) -> Path:
    """The VAE's file with another header."""
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    header, data = take_apart(path.read_bytes())
    path.write_bytes(put_together(change(header), data))
    return path


def test_metadata_of_null(door, folder):
    edited(folder, lambda header: {"__metadata__": None} | header)
    door.check(folder, door.open(folder))


def test_a_name_twice_among_many(folder):
    one = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"a{i}": one for i in range(50_000)})[:-1]
    edited(
        folder, lambda header: f'{many},"z":{json.dumps(one)},"z":{json.dumps(one)},{json.dumps(header)[1:]}'.encode()
    )
    refused(folder, "header names 'z' twice")


def test_many_tensors_beside_a_missing_one(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = tensors_of(path.read_bytes())
    for name in list(tensors)[:8]:
        del tensors[name]
    path.write_bytes(file_of(tensors | {f"decoder.conv_in.w{i:06}": ("F16", [0], b"") for i in range(50_000)}))
    refused(folder, "8 missing")


def test_names_that_a_message_cannot_hold(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"a" * 10**5: np.zeros(1), "\x1b[2J": np.zeros(1)}, path)
    assert r"\x1b[2J" in refused(folder, "2 unexpected")


@pytest.mark.parametrize("name", ["\ud800.safetensors", "a" * 300 + ".safetensors", "\x1b.safetensors"])
def test_names_of_shards(door, tmp_path, name):
    folder = Path(shutil.copytree(door.bases / "shards", tmp_path / "shards"))
    index = folder / "vae/diffusion_pytorch_model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["encoder.conv_in.bias"] = name
    index.write_text(json.dumps(found))
    refused(folder, "tensor encoder.conv_in.bias is said to lie in")


def test_a_layer_number_of_five_thousand_digits(door, tmp_path):
    tensors = tensors_of((door.bases / "bk_sdm_tiny.safetensors").read_bytes())
    name = f"model.diffusion_model.input_blocks.1.1.transformer_blocks.{'9' * 5000}.x"
    path = tmp_path / "bk_sdm_tiny.safetensors"
    path.write_bytes(file_of(tensors | {name: ("F16", [1], b"\0\0")}))
    with pytest.raises(CheckpointError, match="does not hold the unet of .*\n  1 unexpected") as caught:
        door.open(path)
    assert len(str(caught.value)) < 4000
