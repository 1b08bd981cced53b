"""Several prompts in one picture, each where its mask is white."""

import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.runtime import programs


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


def half(sd, left=True):
    side = sd.unet.sample_size * sd.vae.factor
    mask = np.zeros((side, side), np.uint8)
    mask[:, : side // 2] = 255 * left
    mask[:, side // 2 :] = 255 * (not left)
    return mask


ASKED = {"steps": 4, "decode": False, "guidance_scale": 4.0}


def test_a_region_that_is_everything_is_the_prompt(sd):
    everything = Image.new("L", half(sd).shape, 255)
    made = sd.generate("an ant", regions=[("a red circle", everything)], **ASKED)
    np.testing.assert_allclose(made.latents, sd.generate("a red circle", **ASKED).latents, rtol=1e-4, atol=1e-5)


def test_the_same_prompt_everywhere_is_that_prompt(sd):
    regions = [("a red circle", half(sd, left)) for left in (True, False)]
    made = sd.generate("a red circle", regions=regions, **ASKED)
    np.testing.assert_allclose(made.latents, sd.generate("a red circle", **ASKED).latents, rtol=1e-4, atol=1e-5)


def test_one_prompt_on_each_side(sd):
    """After one evaluation, each side's prediction is that of its own prompt."""
    one = ASKED | {"stop_after": 1}
    mixed = sd.generate("a blue square", regions=[("a red circle", half(sd))], **one).latents
    left, right = (sd.generate(prompt, **one).latents for prompt in ("a red circle", "a blue square"))
    middle = mixed.shape[2] // 2
    np.testing.assert_allclose(mixed[:, :, :middle], left[:, :, :middle], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixed[:, :, middle:], right[:, :, middle:], rtol=1e-4, atol=1e-4)
    assert abs(left - right).max() > 1e-3


def test_masks_are_data(sd):
    sd.generate("a", regions=[("a red circle", half(sd))], **ASKED)
    before = programs.run_rows._cache_size()
    sd.generate("an ant", regions=[("a blue square", half(sd, left=False))], **ASKED | {"sampler": "euler", "steps": 7})
    assert programs.run_rows._cache_size() == before


def test_overlapping_masks_share(sd):
    everything = Image.new("L", half(sd).shape, 255)
    twice = sd.generate("an ant", regions=[("a red circle", everything)] * 2, **ASKED)
    np.testing.assert_allclose(twice.latents, sd.generate("a red circle", **ASKED).latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "regions, message",
    [
        ("a red circle", r"list of \(prompt, mask\)"),
        ([("a red circle",)], r"list of \(prompt, mask\)"),
        ([(3, np.zeros((16, 16), np.uint8))], r"list of \(prompt, mask\)"),
        ([("a red circle", np.zeros((16, 16), np.uint8))], "black everywhere"),
        ([("a red circle", "missing.png")], "no such picture"),
        ([], "regions is an empty list"),
    ],
)
def test_refused(sd, regions, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sd.generate("a", regions=regions, **ASKED)
