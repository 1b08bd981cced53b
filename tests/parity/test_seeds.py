"""seed=32 in diffusers on a CPU and here: the same picture, from whole pipelines, torch's noise made without torch."""

import numpy as np
import pytest
import torch

import sdjax
from tests.parity import families
from tests.parity.families import channels_last, relative, run

SEED = 32
SIDE = families.SIZE * families.FACTOR


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def opened(request, tmp_path_factory):
    pipeline = families.build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline, sdjax.load(folder, compilation_cache=False)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "euler_ancestral"])
def test_the_same_seed_is_the_same_picture(opened, sampler):
    pipeline, sd = opened
    asked = {"prompt": "a red circle", "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(SEED)
    want = channels_last(run(pipeline, sampler, generator=generator, height=SIDE, width=SIDE, **asked))
    own = {"steps": families.STEPS, "sampler": sampler, "decode": False, "progress": False}
    made = sd.generate(seed=SEED, noise_source="torch_cpu", **asked, **own).latents
    assert relative(made, want) <= 1e-4
    assert relative(sd.generate(seed=SEED, **asked, **own).latents, want) > 0.1


def test_a_batch_of_one_generator_and_of_many(opened):
    """Picture i of a seed is the i-th of torch's draw; a list of seeds is a list of generators."""
    pipeline, sd = opened
    asked = {"prompt": "a red circle", "guidance_scale": 5.0}
    own = {"steps": families.STEPS, "sampler": "euler", "decode": False, "progress": False}
    size = {"height": SIDE, "width": SIDE}
    one = torch.Generator().manual_seed(SEED)
    want = channels_last(run(pipeline, "euler", generator=one, num_images=3, **size, **asked))
    made = sd.generate(seed=SEED, num_images=3, noise_source="torch_cpu", **asked, **own).latents
    assert relative(made, want) <= 1e-4
    many = [torch.Generator().manual_seed(seed) for seed in (7, 2**31)]
    want = channels_last(run(pipeline, "euler_ancestral", generator=many, num_images=2, **size, **asked))
    own["sampler"] = "euler_ancestral"
    made = sd.generate(seed=[7, 2**31], num_images=2, noise_source="torch_cpu", **asked, **own).latents
    assert relative(made, want) <= 1e-4
    assert np.abs(made[0] - made[1]).max() > 0.1
