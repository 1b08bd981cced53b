"""Eight simulated devices: the pictures of one, whatever is asked; see `parallel_checks` for what is computed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[1]
CLOSE = 1e-5
# Tiny networks are compiled for longer than they run: LLVM's better code is not worth waiting for.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes"

# One level, that fewer programs of fewer layers are compiled.
SMALL = {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}
XL = SMALL | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
PROJECTED = {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 16}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny, xl = make_checkpoint(folder / "tiny", unet=SMALL), make_checkpoint(folder / "xl", unet=XL, text=PROJECTED)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.parallel_checks", str(tiny), str(xl)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": f"{QUICKLY} --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_batches_that_do_not_divide(found):
    latents, grey, images = found["five_pictures"]
    assert latents <= CLOSE and grey <= 1 and images == 5
    assert found["one_picture"] <= CLOSE


@pytest.mark.parametrize(
    "name",
    [
        "lanes",
        "from_pictures",
        "regions",
        "worn",
        "steered",
        "noise_of_torch",
        "refined",
        "added_conditions_without_guidance",
    ],
)
def test_the_pictures_of_one_device(found, name):
    assert np.max(found[name]) <= CLOSE


def test_parts_alone(found):
    assert np.max(found["parts_alone"]) <= CLOSE


def test_steps_and_a_stop(found):
    latents, shown, kept, seen = found["steps_and_a_stop"]
    assert latents <= CLOSE and shown <= CLOSE and kept == 3 and seen == [0, 1, 2] * 2


def test_one_compilation(found):
    counted, more = found["compilations"]
    assert counted > 0 and more == 0


def test_no_transfer_in_the_loop(found):
    latents, message = found["transfers"]
    assert latents <= CLOSE and "Disallowed device-to-device transfer" in message


def test_parameters_are_copied_once(found):
    assert found["copies"] == [8, True]


def test_sharded(found):
    latents, share = found["sharded"]
    assert latents <= CLOSE and share < 0.3


@pytest.mark.parametrize(
    "name,message",
    [
        (
            "too_few",
            "ValueError: devices=9: this process has 8 of kind cpu; XLA_FLAGS=--xla_force_host_platform_device_",
        ),
        ("none", "ValueError: devices=0"),
        ("odd", "ValueError: halves=True takes devices in pairs, and there are 3"),
        ("no_guidance", "ValueError: halves=True shares out .* this run has 1 part.* guidance_scale above 1"),
        ("parts", "ValueError: halves=True .* this run has 3 part.* without AND, regions"),
        ("memory_False", "ValueError: tiny: its parameters take .* parallel.shard cuts them over [0-9]+ devices"),
        ("memory_True", "ValueError: tiny: its parameters take .* parallel.shard cuts them over [0-9]+ devices"),
    ],
)
def test_bad_input(found, name, message):
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["messages"][name])
