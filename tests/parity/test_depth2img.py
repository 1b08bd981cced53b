"""Depth-to-image against diffusers, the map given or estimated: image-to-image that sees it, too."""

import numpy as np
import pytest
import torch

from tests.parity import families
from tests.parity.families import FACTOR, opened, relative
from tests.parity.from_picture import HEIGHT, MOVES, PICTURES, TOLERANCE, WIDTH, V, check, ours, picture, theirs

CUT = ("ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "unipc")


def maps(height, width, seed=0):
    """Two depth maps, float32 `b h w`, in a scale of their own."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(3.0, 60.0, (2, 1, 6, 7)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0].numpy()


MAPS = maps(HEIGHT, WIDTH)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


def compare(sampler, depth=MAPS, **asked):
    want = theirs("depth", sampler, depth=torch.from_numpy(depth), **asked)
    away = relative(ours("depth", sampler, depth=list(depth), **asked), want)
    assert away <= TOLERANCE, away
    return want


@pytest.mark.parametrize("changed", [None, V], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("sampler", CUT)
def test_strengths(sampler, changed):
    made = [compare(sampler, strength=strength, changed=changed) for strength in (0.2, 0.8)]
    assert relative(*made) > MOVES


def test_the_map_is_seen():
    made = compare("ddim", strength=0.8)
    assert relative(compare("ddim", MAPS[::-1].copy(), strength=0.8), made) > MOVES


def test_without_guidance():
    compare("ddim", strength=0.8, guidance_scale=1.0)


@pytest.mark.parametrize("size", [(50, 61), (12, 16), (7, 9), (384, 384)])
def test_maps_of_any_size(size):
    """Bicubic as torch has it: larger maps are not smoothed beforehand."""
    compare("ddim", maps(*size), strength=0.6)


def test_the_scale_of_a_map_makes_no_difference():
    made = compare("ddim", strength=0.6)
    assert relative(compare("ddim", 0.01 * MAPS - 3, strength=0.6), made) <= 10 * TOLERANCE


@pytest.mark.parametrize("size", [(27, 39)])
def test_odd_sizes_are_floored(size):
    odd = [picture(*size, seed) for seed in (1, 2)]
    made = compare("ddim", maps(*size), image=odd, strength=0.6)
    assert made.shape[1:3] == (size[0] // FACTOR, size[1] // FACTOR)


def test_one_map_for_two_prompts():
    want = theirs("depth", "ddim", depth=torch.from_numpy(MAPS[:1]), image=PICTURES, strength=0.6)
    assert relative(ours("depth", "ddim", depth=MAPS[0], strength=0.6), want) <= TOLERANCE


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (27, 39), (50, 34)])
def test_the_map_is_estimated(size):
    """From the picture itself, at the estimator's own size."""
    pictures = [picture(*size, seed) for seed in (1, 2)]
    made = check("depth", "ddim", image=pictures, strength=0.6)
    flat = theirs("depth", "ddim", image=pictures, strength=0.6, depth=torch.from_numpy(maps(*size)))
    assert relative(flat, made) > MOVES


def test_an_estimate_is_the_map_to_give():
    pipeline, sd = opened("depth")
    seen = pipeline.feature_extractor(images=PICTURES[:1], return_tensors="pt").pixel_values
    with torch.no_grad():
        want = pipeline.depth_estimator(seen).predicted_depth[0].numpy()
    assert relative(sd.estimate_depth(PICTURES[0]), want) <= TOLERANCE
