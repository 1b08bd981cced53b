"""Checkpoints go both ways: what diffusers and transformers save we load, and what we save they load."""

import json
import warnings
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder
from sdjax.text import Tokenizer
from sdjax.weights import (
    default_layout,
    read_component,
    read_index,
    read_json,
    save_component,
    save_folder,
    side_files,
)
from tests.golden.make_tokens import PROMPTS, theirs, write_tokenizer

TOKENS, WIDTH = 7, 24


def expected(module, *inputs) -> dict:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]


def expected_components(folder: Path) -> dict[str, dict]:
    """The trees that the folder's own configs ask for, by component."""
    configs = {name: read_json(folder / name / "config.json") for name in ("text_encoder", "unet", "vae")}
    unet = UNetConfig.from_dict(configs["unet"])
    text = ClipTextEncoder(ClipTextConfig.from_dict(configs["text_encoder"]))
    x = jnp.zeros((1, 16, 16, unet.in_channels))
    return {
        "text_encoder": expected(text, jnp.zeros((1, TOKENS), jnp.int32)),
        "unet": expected(UNet(unet), x, jnp.zeros(1), Conditions(jnp.zeros((1, TOKENS, WIDTH)))),
        "vae": expected(Autoencoder(VaeConfig.from_dict(configs["vae"])), jnp.zeros((1, 32, 32, 3))),
    }


def pipeline(folder: Path, linear: bool) -> diffusers.StableDiffusionPipeline:
    """A tiny pipeline of random weights; `linear` projections as SD 2.x has, else convolutions as SD 1.x."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        layers_per_block=1,
        attention_head_dim=[2, 4] if linear else 4,
        use_linear_projection=linear,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(write_tokenizer(folder / "words", "words"))
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def state(pipe) -> dict[str, np.ndarray]:
    parts = {"text_encoder": pipe.text_encoder, "unet": pipe.unet, "vae": pipe.vae}
    return {f"{part}.{key}": t.float().numpy() for part, m in parts.items() for key, t in m.state_dict().items()}


@pytest.fixture(scope="module", params=[False, True], ids=["sd1", "sd2"])
def saved(request, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("pipeline")
    return pipeline(scratch, request.param), scratch


@pytest.mark.parametrize(
    "dtype,options",
    [
        (torch.float32, {}),
        (torch.float16, {"variant": "fp16"}),
        (torch.bfloat16, {}),
        (torch.float32, {"max_shard_size": "100KB"}),
    ],
    ids=["float32", "float16-variant", "bfloat16", "shards"],
)
def test_there_and_back(saved, tmp_path, dtype, options):
    """diffusers saves, we load and save, the files are the same byte for byte, and diffusers loads them."""
    pipe, _ = saved
    pipe.to(dtype)
    pipe.save_pretrained(tmp_path / "theirs", **options)
    want = state(pipe)
    pipe.to(torch.float32)
    index, variant = read_index(tmp_path / "theirs"), options.get("variant")
    components = {
        part: read_component(index.folder / part, tree, variant=variant)
        for part, tree in expected_components(index.folder).items()
    }
    save_folder(tmp_path / "ours", components, side_files(index))
    for path in (tmp_path / "theirs").rglob("*"):
        if path.is_file():
            again = tmp_path / "ours" / path.relative_to(tmp_path / "theirs")
            assert again.read_bytes() == path.read_bytes(), again
    back = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours", variant=variant, dtype=dtype)
    for name, value in state(back).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_what_was_never_loaded_loads_in_diffusers(saved, tmp_path):
    """A tree without a record, as training makes it, saved under today's names."""
    pipe, _ = saved
    pipe.save_pretrained(tmp_path / "theirs")
    for part, tree in expected_components(tmp_path / "theirs").items():
        params, _ = read_component(tmp_path / "theirs" / part, tree)
        config = read_json(tmp_path / "theirs" / part / "config.json")
        save_component(tmp_path / part, params, default_layout(params, config))
    text, _ = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder", output_loading_info=True)
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    want = state(pipe)
    for part, module in (("text_encoder", text), ("unet", unet), ("vae", vae)):
        for key, tensor in module.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), want[f"{part}.{key}"], err_msg=key)


def test_the_vae_s_old_attention_names_are_those_that_diffusers_reads(saved, tmp_path):
    pipe, _ = saved
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in safetensors.numpy.load_file(file).items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        old[name] = tensor
    assert sum("proj_attn" in name for name in old) == 4
    safetensors.numpy.save_file(old, file, {"format": "pt"})
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    want = state(pipe)
    for key, tensor in vae.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), want[f"vae.{key}"])
    params, layout = read_component(tmp_path / "vae", expected_components(tmp_path)["vae"])
    query = params["decoder"]["mid_block"]["attentions.0"]["to_q"]["kernel"]
    np.testing.assert_array_equal(query, want["vae.decoder.mid_block.attentions.0.to_q.weight"].T)
    save_component(tmp_path / "again", params, layout)
    assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["words", "sd2"])
def test_tokens_are_transformers_own(tmp_path, kind):
    folder = write_tokenizer(tmp_path / kind, kind)
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (folder, tmp_path / "again"):
            np.testing.assert_array_equal(Tokenizer.load(one).tokens(PROMPTS), theirs(folder))


@pytest.fixture(scope="module", params=["words", "sd2"])
def both(request, tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("both"), request.param)
    return Tokenizer.load(folder), transformers.CLIPTokenizer.from_pretrained(folder)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40) | st.text("aAeé'sdrlmvt!<|>endoftx 1\u0301\n", max_size=60))
def test_any_text_has_transformers_ids(both, text):
    ours, other = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = ours.tokens([text])[0].tolist()
    length = other.model_max_length
    assert row == other(text, padding="max_length", max_length=length, truncation=True)["input_ids"]


def test_index_of_a_saved_pipeline(saved, tmp_path):
    saved[0].save_pretrained(tmp_path)
    index = read_index(tmp_path)
    assert index.components["scheduler"] == "PNDMScheduler" and index.ignored == ()
    assert json.loads(index.text)["_class_name"] == index.pipeline
