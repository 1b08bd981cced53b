"""From a picture, end to end on tiny random models: what is kept, what strength means, one program for all of it."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

import sdjax
from sdjax import torch_noise
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.runtime import programs
from tests.checkpoints import TO_LATENTS, make_checkpoint

RNG = np.random.default_rng(0)
SIDE, SMALL = 16, 8  # of pictures and latents
LATENTS = RNG.standard_normal((2, SMALL, SMALL, 4)).astype(np.float32)
PROMPTS = ["a red circle", "a blue square"]
QUICK = dict(steps=6, progress=False, decode=False)
LATENT = {"inpainting": 9, "pix2pix": 8, "upscaler": 7, "depth": 5}


def picture(width=SIDE, height=SIDE, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def painted(box, width=SIDE, height=SIDE, value=255):
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


PICTURES, MASKS = [picture(seed=1), picture(seed=2)], [painted((3, 2, 11, 9)), painted((8, 0, 16, 16))]
OUTSIDE = [np.asarray(mask)[::2, ::2] == 0 for mask in MASKS]


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """Models that see more than the latents, by name; only to be asked what they refuse, and inpainting."""
    folder = tmp_path_factory.mktemp("special")
    return {
        name: sdjax.load(make_checkpoint(folder / name, unet={"in_channels": channels}), compilation_cache=False)
        for name, channels in LATENT.items()
    }


def compilations():
    """Programs compiled so far by everything that a picture goes through."""
    return sum(step._cache_size() for step in (*TO_LATENTS, programs.encode, programs.decode))


# ---------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_outside_the_mask_the_latents_are_the_original_s(sd, sampler, strength):
    asked = dict(image=LATENTS, mask=MASKS, strength=strength, guidance_scale=3.0, steps=8)
    made = sd.generate(PROMPTS, **QUICK | asked, sampler=sampler).latents
    for one, original, outside in zip(made, LATENTS, OUTSIDE, strict=True):
        np.testing.assert_allclose(one[outside], original[outside], atol=1e-5, rtol=0)
        assert np.abs(one - original)[~outside].max() > 0.1


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_outside_the_mask_a_picture_s_latents_are_its_encoding(sd, sampler):
    asked = dict(image=PICTURES, seed=5, sampler=sampler)
    encoded = sd.generate(PROMPTS, **QUICK, **asked, strength=0.0).latents
    made = sd.generate(PROMPTS, **QUICK, **asked, mask=MASKS, strength=0.7).latents
    for one, original, outside in zip(made, encoded, OUTSIDE, strict=True):
        np.testing.assert_allclose(one[outside], original[outside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", [{}, {"mask_blur": 1.5}, {"mask_crop": 2}, {"mask_crop": 0, "mask_blur": 1.0}])
def test_outside_the_mask_the_picture_is_the_original_to_the_last_bit(sd, given):
    out = sd.generate(PROMPTS, image=PICTURES, mask=MASKS, **QUICK | {"decode": True}, **given)
    for one, original, mask in zip(out.images, PICTURES, MASKS, strict=True):
        kept = np.asarray(mask.filter(ImageFilter.GaussianBlur(given.get("mask_blur", 0)))) == 0
        assert kept.any()
        np.testing.assert_array_equal(np.asarray(one)[kept], np.asarray(original)[kept])
        assert (np.asarray(one) != np.asarray(original))[np.asarray(mask) == 255].mean() > 0.5


def test_a_large_picture_keeps_its_size_under_a_crop(sd):
    large, mask = picture(90, 70), painted((40, 31, 52, 40), 90, 70)
    out = sd.generate("a red circle", image=large, mask=mask, mask_crop=3, height=SIDE, width=SIDE, steps=3)
    assert out.images[0].size == (90, 70) and out.latents.shape == (1, SMALL, SMALL, 4)
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(out.images[0])[kept], np.asarray(large)[kept])
    assert (np.asarray(out.images[0]) != np.asarray(large)).any()


def test_what_is_inside_depends_on_what_is_outside(sd):
    """The network sees the kept part at every step: the rest is made to fit it."""
    other = np.where(OUTSIDE[0][None, :, :, None], LATENTS + 1, LATENTS)
    asked = dict(mask=MASKS[0], strength=1.0, **QUICK)
    made = [sd.generate(PROMPTS[:1], image=image[:1], **asked).latents[0] for image in (LATENTS, other)]
    assert np.abs(made[0] - made[1])[~OUTSIDE[0]].max() > 1e-3


# ---------------------------------------------------------------------- strength


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "heun", "dpmpp_2m", "dpmpp_sde", "lcm"])
def test_strength_1_is_text_to_image(sd, sampler):
    plain = sd.generate(PROMPTS, **QUICK, sampler=sampler, seed=3)
    for image in (PICTURES, LATENTS):
        made = sd.generate(PROMPTS, **QUICK, sampler=sampler, seed=3, image=image, strength=1.0)
        np.testing.assert_array_equal(made.latents, plain.latents)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_strength_0_is_the_picture(sd, sampler):
    made = sd.generate(PROMPTS, **QUICK, sampler=sampler, image=LATENTS, strength=0).latents
    np.testing.assert_array_equal(made, LATENTS)
    made = sd.generate(PROMPTS, **QUICK, sampler=sampler, image=LATENTS, strength=0.1).latents  # of 6 steps none
    np.testing.assert_array_equal(made, LATENTS)


def test_strength_0_of_a_picture_is_a_draw_of_its_encoding(sd):
    """mean + deviation e of the posterior, e the first numbers of the seed's generator."""
    made = sd.generate(PROMPTS[0], **QUICK, image=PICTURES[0], strength=0, seed=9, noise_source="torch_cpu").latents
    drawn = torch_noise.generator("torch_cpu", 9).randn((4, SMALL, SMALL)).transpose(1, 2, 0)[None]
    pixels = np.asarray(PICTURES[0], np.float32)[None] / 127.5 - 1
    want = programs.encode(sd.vae, sd.networks.dtype_of("vae"), sd.networks.params["vae"], pixels, drawn)
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-5)
    assert np.abs(made - sd.encode(pixels)).max() > 1e-3


def test_the_encoding_and_the_start_are_drawn_apart(sd):
    """The same numbers for both would leave what the network is not trained for: noise that the picture foretells."""
    flat = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    encoded = sd.generate("a", **QUICK, image=flat, strength=0, seed=4).latents
    mean = np.asarray(sd.encode(np.full((1, SIDE, SIDE, 3), 128 / 127.5 - 1, np.float32)))
    plan = sd.plan("ddim", 6, strength=0.5)
    begun = sd.generate("a", **QUICK, image=flat, strength=0.5, seed=4, sampler="ddim", show_steps=[0]).steps[0]
    noise = (np.asarray(begun.latents) - plan.start.alpha * encoded) / plan.start.sigma
    drawn = (encoded - mean) / (encoded - mean).std()
    assert abs(np.corrcoef(noise.ravel(), drawn.ravel())[0, 1]) < 0.3
    assert 0.8 < noise.std() < 1.2


def test_more_strength_leads_farther_away(sd):
    away = [
        np.abs(sd.generate(PROMPTS, steps=20, decode=False, image=LATENTS, strength=share).latents - LATENTS).mean()
        for share in (0.1, 0.4, 0.7, 1.0)
    ]
    assert away == sorted(away) and away[-1] > 1.5 * away[0]


def test_one_entry_for_each_picture(sd):
    """Strengths, pictures and masks of its own; each as alone."""
    asked = dict(image=PICTURES, mask=MASKS, strength=[0.4, 1.0], seed=[3, 4], sampler=["ddim", "euler"])
    both = sd.generate(PROMPTS, **QUICK, **asked).latents
    for i, prompt in enumerate(PROMPTS):
        alone = sd.generate(prompt, **QUICK, **{name: value[i] for name, value in asked.items()}).latents
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- one program


def test_one_compilation_for_all_pictures_masks_and_strengths(sd):
    sd.generate(PROMPTS, **QUICK | {"decode": True})
    from_text = programs.run_rows._cache_size(), programs.begin._cache_size()
    sd.generate(PROMPTS, **QUICK | {"sampler": "euler_ancestral"}, image=PICTURES)
    assert (programs.run_rows._cache_size(), programs.begin._cache_size()) == from_text
    before = compilations()
    for i, sampler in enumerate(("ddim", "pndm", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")):
        sd.generate(
            ["an ant", "a small green circle"],
            ["", "a circle"],
            image=(PICTURES, PICTURES[::-1], LATENTS, PICTURES[0])[i % 4],
            mask=(None, MASKS, MASKS[0], painted((0, 0, 4, 4), value=128))[i % 4],
            strength=(0.15 * i, 1.0, 0, [0.3, 0.3])[i % 4],
            mask_blur=0 if i % 4 == 0 else i / 3,
            sampler=sampler,
            steps=3 + 8 * i,
            seed=i,
            guidance_scale=2.0 + i,
            decode=i % 2 == 0,
            progress=False,
        )
    sd.generate(PROMPTS, **QUICK, image=picture(31, 23), mask=painted((5, 5, 20, 20), 31, 23), height=SIDE, width=SIDE)
    sd.generate(PROMPTS, **QUICK, image=picture(31, 23), mask=painted((5, 5, 20, 20), 31, 23), mask_crop=2,
                height=SIDE, width=SIDE)  # fmt: skip
    assert compilations() == before


def test_one_compilation_of_an_inpainting_model(special):
    model = special["inpainting"]
    model.generate(PROMPTS, image=PICTURES, mask=MASKS, strength=0.9, **QUICK)
    before = compilations()
    model.generate(["an ant", "a"], image=PICTURES[1], mask=MASKS[1], sampler="euler", **QUICK | {"steps": 9})
    model.generate(PROMPTS, image=PICTURES, mask=MASKS[::-1], strength=0.5, mask_blur=1.0, **QUICK)
    assert compilations() == before


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"image": [*PICTURES, PICTURES[0]]}, "image has 3 entries for 2"),
        ({"image": PICTURES, "mask": [*MASKS, MASKS[0]]}, "mask has 3 entries for 2"),
        ({"image": PICTURES, "strength": [0.5, 0.5, 0.5]}, "strength has 3 entries for 2"),
        ({"image": LATENTS[[0, 0, 0]]}, r"latents, \[2, height, width, 4\]"),
        ({"image": PICTURES, "strength": 1.01}, "strength must be a number from 0"),
        ({"image": PICTURES, "strength": -0.01}, "strength must be a number from 0"),
        ({"image": PICTURES, "strength": float("nan")}, "strength must be a number from 0"),
        ({"image": PICTURES, "strength": "0.5"}, "strength must be a number from 0"),
        ({"strength": 0.5}, "strength= belongs to a picture"),
        ({"mask": MASKS}, "mask= belongs to a picture"),
        ({"image": PICTURES, "mask": painted((0, 0, 4, 4), 20, 16)}, "mask is 20 x 16 and the picture 16 x 16"),
        ({"image": PICTURES, "mask": painted((0, 0, 0, 0))}, "black all over"),
        ({"image": PICTURES, "mask": painted((0, 0, 16, 16))}, "white all over"),
        ({"image": PICTURES, "mask": painted((1, 1, 2, 2))}, "too small"),
        ({"image": PICTURES, "mask": MASKS, "mask_blur": -1}, "mask_blur must be"),
        ({"image": PICTURES, "mask": MASKS, "mask_crop": 1.5}, "mask_crop must be"),
        ({"image": PICTURES, "mask_crop": 4}, "give mask="),
        ({"image": picture(1, 1)}, "smaller than the 2"),
        ({"image": [PICTURES[0], picture(12, 8)]}, "several sizes"),
        ({"image": [PICTURES[0], None]}, r"image"),
        ({"image": "missing.png"}, "no such picture"),
        ({"image": PICTURES, "depth": PICTURES}, "for a depth model"),
        ({"image": PICTURES, "noise_level": 20}, "for an upscaler"),
        ({"image": PICTURES, "image_guidance_scale": 2.0}, "InstructPix2Pix"),
        ({"image": PICTURES, "denoising_start": 0.5}, "give one of them"),
        ({"image": PICTURES, "latents": LATENTS[:, :4]}, "latents must be"),
        ({"image": "given"}, "pass that as image="),
    ],
)
def test_refused_before_anything_compiles(sd, asked, message):
    before = compilations()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sd.generate(PROMPTS, **asked)
    assert compilations() == before


@pytest.mark.parametrize(
    "model, asked, message",
    [
        ("inpainting", {}, "model for inpainting: give image= and mask="),
        ("inpainting", {"image": PICTURES}, "model for inpainting: give image= and mask="),
        ("inpainting", {"image": LATENTS, "mask": MASKS}, "needs the picture itself"),
        ("pix2pix", {}, "model for pix2pix: give image="),
        ("pix2pix", {"image": PICTURES, "mask": MASKS}, "no use for mask="),
        ("pix2pix", {"image": PICTURES, "strength": 0.5}, "no use for strength="),
        ("pix2pix", {"image": PICTURES, "image_guidance_scale": 0.5}, "image_guidance_scale must be"),
        ("pix2pix", {"image": PICTURES, "image_guidance_scale": [1.0] * 3}, "image_guidance_scale has 3 entries"),
        ("upscaler", {}, "model for upscaling: give image="),
        ("upscaler", {"image": PICTURES, "noise_level": 5000}, "noise_level must be at most"),
        ("upscaler", {"image": PICTURES, "noise_level": -1}, "noise_level must be"),
        ("upscaler", {"image": PICTURES}, "low_res_scheduler"),
        ("depth", {}, "model for depth: give image=, or depth="),
    ],
)
def test_models_that_need_something_else(special, model, asked, message):
    before = compilations()
    with pytest.raises(ValueError, match=message):
        special[model].generate(PROMPTS, **asked)
    assert compilations() == before


def test_what_is_given_stays_as_it_is(sd):
    """Nothing of the caller's is written to."""
    image, mask, latents = picture(), painted((2, 2, 9, 9)), LATENTS.copy()
    before = image.tobytes(), mask.tobytes()
    sd.generate("a", image=image, mask=mask, mask_blur=1.0, **QUICK)
    sd.generate(PROMPTS, image=latents, mask=mask, **QUICK)
    assert (image.tobytes(), mask.tobytes()) == before
    np.testing.assert_array_equal(latents, LATENTS)


def test_settings_ask_for_the_picture_again(sd):
    out = sd.generate(PROMPTS, image=PICTURES, mask=MASKS, strength=0.5, mask_crop=2, **QUICK | {"decode": True})
    assert out.settings["strength"] == 0.5 and out.settings["mask_crop"] == 2
    with pytest.raises(ValueError, match="made from another: pass that as image="):
        sd.generate(**out.settings)
    alone = sdjax.read_settings(out.images[1])
    again = sd.generate(**alone | dict(image=PICTURES[1], mask=MASKS[1]), decode=False, progress=False)
    np.testing.assert_allclose(again.latents[0], out.latents[1], rtol=1e-4, atol=1e-5)
