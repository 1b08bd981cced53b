"""A ControlNet-LLLite in a call: what stands before the layers of attention, each picture with its own map."""

import numpy as np
import pytest

import sdjax
from tests import checkpoints, control_nets
from tests.adapters import written
from tests.test_control import RUN, apart, drawn

# SDXL's levels, two resnets each, and a VAE that halves thrice: kohya's names count by them.
LEVELS = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
}
VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
MODULES = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (2, 16),
    "input_blocks_5_1_transformer_blocks_0_attn2_to_q": (2, 16),
    "input_blocks_7_1_transformer_blocks_0_attn1_to_v": (3, 16),
    "middle_block_1_transformer_blocks_0_attn1_to_k": (3, 16),
}
MAPS = [drawn(i, (64, 64)) for i in range(2)]
PROMPTS = ["a red circle", "a blue square"]
SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return sdjax.load(checkpoints.make_checkpoint(tmp_path_factory.mktemp("lllite") / "xl", unet=LEVELS, vae=VAE))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "lite.safetensors"
    return sdjax.load_controlnet(written(path, control_nets.lllite_tensors(MODULES)))


def test_each_picture_by_its_own_map(sd, net):
    base = sd.generate(PROMPTS, **SIZE, **RUN).latents
    both = sd.generate(PROMPTS, control=sdjax.Control(net, MAPS, [0.8, 0.0]), **SIZE, **RUN).latents
    assert np.array_equal(both[1], base[1]) and apart(both[0], base[0]) > 1e-4
    alone = sd.generate(PROMPTS[0], control=[(net, MAPS[0], 0.8)], **SIZE, **RUN).latents
    assert np.array_equal(alone[0], both[0])
    other = sd.generate(PROMPTS[0], control=[(net, MAPS[1], 0.8)], **SIZE, **RUN).latents
    assert apart(other, alone) > 1e-5


def test_a_mask_and_guessing_are_refused(sd, net):
    with pytest.raises(ValueError, match="cannot be masked"):
        sd.request("", control=sdjax.Control(net, MAPS[0], mask=drawn(0, (64, 64))), **SIZE)
    with pytest.raises(ValueError, match="mode 'guess' is for ControlNets"):
        sd.request("", control=sdjax.Control(net, MAPS[0], mode="guess"), **SIZE)


def test_a_size_that_its_tokens_do_not_fit(sd, net):
    with pytest.raises(ValueError, match="multiples of 32, and this picture is 72 x 64"):
        sd.request("", control=[(net, drawn(0, (64, 72)))], height=64, width=72)
