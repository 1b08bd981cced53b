"""The x4 upscaler against diffusers: the small picture noised beside the latents, its level as a class label."""

import numpy as np
import pytest

from tests.parity import families
from tests.parity.families import opened, relative, run
from tests.parity.from_picture import COMMON, MOVES, PICTURES, SEEDS, check, generators, of_kind, ours, picture, theirs

SMALL = [picture(12, 16, seed) for seed in (1, 2)]
LEVEL = dict(image=SMALL, noise_level=20)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@pytest.mark.parametrize("changed", [None, {"prediction_type": "epsilon"}], ids=["velocity", "epsilon"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_ancestral", "pndm", "dpmpp_2m", "unipc"])
def test_samplers(sampler, changed):
    check("upscaler", sampler, changed=changed, **LEVEL)


@pytest.mark.parametrize("level", [0, 100, 350])
def test_noise_levels(level):
    made = check("upscaler", "ddim", **LEVEL | dict(noise_level=level))
    assert relative(theirs("upscaler", "ddim", **LEVEL), made) > MOVES


def test_the_usual_level():
    want = theirs("upscaler", "ddim", **LEVEL)
    assert relative(ours("upscaler", "ddim", image=SMALL), want) <= 1e-5


def test_without_guidance():
    made = check("upscaler", "ddim", guidance_scale=1.0, **LEVEL)
    assert relative(theirs("upscaler", "ddim", **LEVEL), made) > MOVES


@pytest.mark.parametrize("size", [(13, 17)])
def test_other_sizes(size):
    """diffusers floors a small picture to multiples of the VAE's factor, which nothing asks for: one of 13 x 17
    pixels is enlarged whole here, and as 12 x 16 there."""
    odd = [picture(*size, seed) for seed in (1, 2)]
    assert theirs("upscaler", "ddim", image=odd, noise_level=20).shape[1:3] == (12, 16)
    assert ours("upscaler", "ddim", image=odd).shape[1:3] == size


def test_pixels():
    """Four times as large, through the VAE's own scale."""
    want = run(of_kind("upscaler", None), "ddim", generator=generators(), output_type="np", **COMMON | LEVEL)
    given = dict(seed=list(SEEDS), noise_source="torch_cpu", progress=False)
    out = opened("upscaler")[1].generate(**COMMON | LEVEL | given, sampler="ddim")
    assert out.pixels.shape == (2, 48, 64, 3) and PICTURES
    assert np.abs(out.pixels - 255 * want).max() <= 0.51  # rounded, and no more than that
