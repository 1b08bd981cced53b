"""InstructPix2Pix against diffusers: the picture beside the latents, and guidance by the text and by the picture."""

import pytest

from tests.parity import families
from tests.parity.families import FACTOR, relative
from tests.parity.from_picture import HEIGHT, MOVES, PICTURES, WIDTH, V, check, picture, theirs

SCALES = dict(guidance_scale=5.0, image_guidance_scale=1.5)
SIZE = dict(height=HEIGHT, width=WIDTH)  # diffusers' SDXL pipeline goes by these, the other by the picture


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


@pytest.mark.parametrize("changed", [None, V], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("sampler", ["euler_ancestral", "euler", "ddim", "pndm", "dpmpp_2m", "unipc"])
def test_samplers(sampler, changed):
    check("pix2pix", sampler, changed=changed, **SCALES)


@pytest.mark.parametrize("text,picture_scale", [(1.5, 7.0), (7.5, 1.0), (3.0, 3.0)])
def test_scales(text, picture_scale):
    made = check("pix2pix", "euler", guidance_scale=text, image_guidance_scale=picture_scale)
    assert relative(theirs("pix2pix", "euler", **SCALES), made) > MOVES


def test_without_a_negative_prompt():
    made = check("pix2pix", "euler", negative_prompt=None, **SCALES)
    assert relative(theirs("pix2pix", "euler", **SCALES), made) > MOVES


def test_without_guidance():
    """The picture is shown all the same."""
    asked = dict(guidance_scale=1.0, image_guidance_scale=1.5)
    made = check("pix2pix", "euler", **asked)
    assert relative(theirs("pix2pix", "euler", **asked, image=PICTURES[::-1]), made) > MOVES


@pytest.mark.parametrize("size", [(27, 39)])
def test_odd_sizes_are_floored(size):
    made = check("pix2pix", "ddim", image=[picture(*size, seed) for seed in (1, 2)], **SCALES)
    assert made.shape[1:3] == (size[0] // FACTOR, size[1] // FACTOR)


def test_one_picture_for_two_prompts():
    check("pix2pix", "euler", image=PICTURES[1], **SCALES)


def test_two_pictures_of_a_prompt():
    check("pix2pix", "euler", prompt=["a red ring"], negative_prompt=["a"], num_images=2, **SCALES)


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_sdxl(sampler):
    made = check("pix2pix_xl", sampler, **SIZE, **SCALES)
    changed = dict(crop=(3, 9), original_size=(17, 40), negative_prompt=None)
    assert relative(check("pix2pix_xl", sampler, **SIZE, **SCALES, **changed), made) > MOVES


def test_sdxl_rescaled():
    """Towards the spread of the network's answer with text and picture."""
    made = check("pix2pix_xl", "euler", **SIZE, **SCALES, guidance_rescale=0.7)
    assert relative(theirs("pix2pix_xl", "euler", **SIZE, **SCALES), made) > MOVES
