"""Image variations against diffusers: a picture's embedding where other models have the text."""

import numpy as np
import pytest

from tests.parity import families, from_picture
from tests.parity.families import relative
from tests.parity.from_picture import HEIGHT, MOVES, PICTURES, TOLERANCE, WIDTH, picture

SIZE = dict(height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    with families.quick_compiles():
        yield


def theirs(sampler, **asked):
    given = dict(image=PICTURES, steps=10, guidance_scale=5.0, generator=from_picture.generators()) | SIZE
    return families.channels_last(families.run(from_picture.of_kind("variation", None), sampler, **given | asked))


def check(sampler, changed=None, **asked):
    want = theirs(sampler, changed=changed, **asked)
    given = dict(prompt=None, negative_prompt=None) | SIZE
    away = relative(from_picture.ours("variation", sampler, changed, **given | asked), want)
    assert away <= TOLERANCE, away
    return want


@pytest.mark.parametrize("sampler", ["pndm", "ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc"])
def test_samplers(sampler):
    made = check(sampler)
    assert relative(theirs(sampler, image=PICTURES[::-1]), made) > MOVES


def test_without_guidance():
    assert relative(check("ddim", guidance_scale=1.0), theirs("ddim")) > MOVES


@pytest.mark.parametrize("size", [(27, 39), (70, 50), (9, 100)])
def test_pictures_of_any_size(size):
    """The size made is asked for, or the model's own; the picture's middle is what the encoder sees."""
    check("ddim", image=[picture(*size, seed) for seed in (1, 2)])


def test_two_pictures_of_one():
    check("ddim", image=PICTURES[0], num_images=2)


def test_settings_make_the_same_pictures_again():
    """They hold a list of empty prompts, which says no more than none does."""
    sd = families.opened("variation")[1]
    made = sd.generate(image=PICTURES, seed=[3, 4], steps=2, sampler="ddim", decode=False)
    again = sd.generate(**made.settings | {"image": PICTURES}, decode=False)
    np.testing.assert_array_equal(again.latents, made.latents)


def test_two_pictures_of_each_of_two():
    """Picture i under the seed is the i-th, whatever it is of."""
    sd = families.opened("variation")[1]
    asked = dict(steps=2, sampler="ddim", decode=False)
    made = sd.generate(image=PICTURES, num_images=2, **asked).latents
    for i, of in enumerate((0, 0, 1, 1)):
        alone = sd.generate(image=PICTURES[of], first_image=i, **asked).latents
        np.testing.assert_allclose(made[i], alone[0], rtol=1e-5, atol=1e-5)


def test_the_embedding_by_itself():
    """As the U-Net is told it: the first prediction of a run is that of `predict`."""
    sd = families.opened("variation")[1]
    run = sd.generate(image=PICTURES[0], guidance_scale=1.0, steps=3, sampler="ddim", decode=False, show_steps=[0])
    step, plan = run.steps[0], sd.plan("ddim", 3)
    raw = np.asarray(sd.predict(step.latents, step.timestep, sd.encode_image(PICTURES[0])))
    np.testing.assert_allclose(step.denoised, plan.c_skip[0] * step.latents + plan.c_out[0] * raw, rtol=1e-4, atol=1e-3)


def test_no_text():
    sd = families.opened("variation")[1]
    for use in (
        lambda: sd.encode_prompt(["a red circle"]),
        lambda: sd.tokenizer,
        lambda: sd.generate(prompt=["", "a red circle"], image=PICTURES),
    ):
        with pytest.raises(ValueError, match="no text encoder"):
            use()
