"""Whatever is wrong with a control network's file, or with the model it is used with, is told in words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.config import ConfigError, UNetConfig
from sdjax.weights import CheckpointError
from tests import control_nets
from tests.checkpoints import UNET, make_checkpoint
from tests.control_nets import FILE, controlnet_config, net_tensors, t2i_config, write_net
from tests.single_files import SMALL
from tests.test_hub import hub  # noqa: F401, a fixture

CONFIG = controlnet_config(UNET, factor=2)
XL_UNET = SMALL["sdxl"].configs["unet"]
WIDE_UNET = SMALL["sd15"].configs["unet"]
LLLITE = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (2, 640),
    "input_blocks_8_1_transformer_blocks_9_attn2_to_q": (3, 1280),
    "middle_block_1_transformer_blocks_0_attn1_to_v": (3, 1280),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_net(tmp_path_factory.mktemp("nets") / "canny", CONFIG)


def refused(source, match: str, error: type[Exception] = CheckpointError, **options) -> str:
    with pytest.raises(error, match=match) as caught:
        sdjax.load_controlnet(source, **options)
    assert str(caught.value).count("\n") < 20
    return str(caught.value)


def saved(path: Path, tensors, metadata=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


# Whose they are ------------------------------------------------------------


def test_a_net_of_another_family_is_told(folder):
    net = sdjax.load_controlnet(folder)
    own = UNetConfig.from_dict(UNET)
    net.check(own, {}, "tiny")
    net.check(replace(own, in_channels=9, use_linear_projection=True), {}, "inpainting")

    def told(match, **changes):
        with pytest.raises(ValueError, match=match):
            net.check(replace(own, **changes), {}, "mine")

    told(
        r"ControlNet 'canny' is for a model of its own kind \(text 16 wide, channels 8, 16\), and mine is SD 1.x "
        r"\(text 768 wide, .*: take one for SD 1.x",
        cross_attention_dim=768,
    )
    told("take one for SDXL", cross_attention_dim=2048)
    told("channels 8, 32", block_out_channels=(8, 32))
    told(r"\[1, 1\] resnets a level.*\[2, 2\] resnets a level", layers_per_block=(2, 2))
    told("takes in 4 channels of latents, and mine has 16", out_channels=16)


def test_a_t2i_adapter_of_another_family_is_told(tmp_path):
    four = {"block_out_channels": [8, 16, 16, 24]}
    net = sdjax.load_controlnet(write_net(tmp_path / "t", t2i_config(four)))
    unet = UNetConfig.from_dict(WIDE_UNET)
    net.check(replace(unet, block_out_channels=(8, 16, 16, 24)), {}, "mine")
    with pytest.raises(ValueError, match="'t' is for a U-Net of 4 levels .*8, 16, 16, 24 wide, and mine has 2"):
        net.check(UNetConfig.from_dict(UNET), {}, "mine")
    xl = sdjax.load_controlnet(write_net(tmp_path / "xl", t2i_config(XL_UNET)))
    xl.check(UNetConfig.from_dict(XL_UNET), {}, "xl")
    with pytest.raises(ValueError, match="3 levels"):
        xl.check(unet, {}, "mine")


# What is wrong -------------------------------------------------------------


def test_configs_that_are_refused(tmp_path, folder):
    def refuses(match, **changes):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
        refused(tmp_path, match, ConfigError)

    save_file(net_tensors(CONFIG), tmp_path / FILE)
    refuses("config.json: encoder_hid_dim = 4096 is not supported", encoder_hid_dim=4096)
    refuses("controlnet_conditioning_channel_order = 'grb'.*'rgb', 'bgr'", controlnet_conditioning_channel_order="grb")
    refuses("down_block_types has 1 entries, block_out_channels 2", down_block_types=["DownBlock2D"])
    refuses("down_block_types = 'X' is not supported", down_block_types=["X", "DownBlock2D"])
    refuses("conditioning_channels must be a whole number from 1 to 64, not 0", conditioning_channels=0)
    refuses("conditioning_embedding_out_channels must be 1 to 8", conditioning_embedding_out_channels=[8] * 9)
    refuses("global_pool_conditions must be true or false", global_pool_conditions=3)
    refuses("addition_time_embed_dim missing", num_control_type=6)
    refuses("cross_attention_dim", cross_attention_dim=None)
    wide = dict(num_control_type=6, addition_time_embed_dim=8, num_trans_channel=320)
    refuses(r"num_trans_channel must be block_out_channels\[0\], 8, not 320", **wide)
    (tmp_path / "config.json").write_text("[1]")
    refused(tmp_path, "config.json must hold a JSON object")


def test_tensors_that_are_wrong(tmp_path):
    tensors = net_tensors(CONFIG)
    where = control_nets.write_folder(tmp_path / "x", CONFIG, tensors)

    def refuses(match, changes=None, without=()):
        changed = {name: array for name, array in (tensors | (changes or {})).items() if name not in without}
        save_file(changed, where / FILE)
        return refused(where, match)

    first = "down_blocks.0.resnets.0.conv1.weight"
    misspelt = {first.replace("conv1", "conv9"): tensors[first]}
    told = refuses("(?s)is no ControlNet as it says:.*1 missing:.*1 unexpected", misspelt, [first])
    assert f"{first} (nearest: down_blocks.0.resnets.0.conv9.weight)" in told
    refuses(
        r"(?s)1 of the wrong shape:.*expected \[8, 8, 3, 3\], found \[8, 8, 1, 1\]",
        {first: tensors[first][..., :1, :1]},
    )
    broken = tensors[first].copy()
    broken[0, 0, 0, 0] = np.nan
    refuses(f"{first} holds nan", {first: broken})
    refuses("(?s)1 of the wrong dtype.*found I64", {first: np.zeros((8, 8, 3, 3), np.int64)})
    save_file(tensors, where / FILE)
    whole = (where / FILE).read_bytes()
    (where / FILE).write_bytes(whole[:-100])
    refused(where, "truncated or corrupt")
    (where / FILE).write_bytes(b"")
    refused(where, "truncated or corrupt: it is empty")


def test_unknown_widths_need_a_config(tmp_path):
    path = saved(tmp_path / "x.safetensors", net_tensors(CONFIG))
    refused(path, "no published family: its channels are 8, 16, and it takes in a text 16 wide.*config.json")
    stub = {name: np.ones((2, 2), np.float32) for name in ("zero_convs.0.0.weight", "input_hint_block.0.weight")}
    refused(saved(path, stub), "has no input_blocks.0.0 or no resnets")


@pytest.mark.parametrize(
    ("held", "what"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA .*sdjax.load_adapter"),
        (["emb_params"], "a textual-inversion embedding.*sdjax.load_adapter"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight"],
            "a checkpoint, or a part of one, and no control: .*sdjax.load",
        ),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "a checkpoint, or a part of one"),
        (["controlnet_cond_embedding.conv_in.bias"], "a part of a control: no control.* damaged"),
        (["controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"], "for another architecture"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.motion_modules.0.x"], "for another architecture"),
        (["what", "is.this"], "no control that is known; .*\n    is.this\n    what"),
    ],
)
def test_files_of_other_things(held, what, tmp_path):
    path = saved(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float16) for name in held})
    refused(path, f"a.safetensors is {what}")


def test_places_that_hold_none(tmp_path, folder):
    refused(make_checkpoint(tmp_path / "model"), "model is a checkpoint and no control: open it with sdjax.load")
    refused(tmp_path / "nothing.safetensors", "is neither a file nor a folder here nor a Hub id")
    (tmp_path / "x.pth").write_bytes(b"\x80\x04abc")
    refused(tmp_path / "x.pth", "x.pth is a pickle.*never is")
    refused(tmp_path / "missing.pth", "is a pickle")
    refused("", "load_controlnet takes a file, a folder or a Hub id")
    refused(3, "load_controlnet takes a file, a folder or a Hub id, not 3")
    refused(folder, "name must be a text", ValueError, name=3)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty holds no .safetensors file; it is empty")
    saved(tmp_path / "two" / "a.safetensors", {"x": np.ones(1)})
    saved(tmp_path / "two" / "b.safetensors", {"x": np.ones(1)})
    refused(tmp_path / "two", "holds several files; give the path of one")
    refused(saved(tmp_path / "no.safetensors", {}), "holds no tensors")
    outside = tmp_path / "linked"
    outside.mkdir()
    (outside / "config.json").symlink_to(folder / "config.json")
    (outside / FILE).symlink_to(folder / FILE)
    refused(outside, "leads out of the checkpoint")
