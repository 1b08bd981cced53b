"""What `generate` is given besides text, made into a canvas: sizes, masks, boxes, and what does not go together."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sdjax.diffusion.noise import Level
from sdjax.images.grow import grow
from sdjax.model.tasks import DEPTH, INPAINTING, PIX2PIX, TASKS, TEXT, UPSCALING, VARIATION, task_of
from sdjax.request.arguments.arguments import Arguments
from sdjax.request.read_images import read_image_inputs, resized

CHANNELS = {TEXT: 4, INPAINTING: 9, PIX2PIX: 8, UPSCALING: 7, DEPTH: 5, VARIATION: 4}
RNG = np.random.default_rng(0)


def model(kind, factor=8):
    return SimpleNamespace(
        name="model",
        task=kind,
        side=16 * factor,
        unet=SimpleNamespace(in_channels=CHANNELS[kind], sample_size=16),
        vae=SimpleNamespace(latent_channels=4, factor=factor),
        encoders={} if kind == VARIATION else {"text_encoder": None},
        image_encoder=object() if kind == VARIATION else None,
        most_noise=350,
        low_res_noise=SimpleNamespace(level=lambda t: Level(1.0, 0.0, t)),
        depth_estimator=None,
    )


def picture(width=64, height=48):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def spot(width=64, height=48, box=(16, 8, 40, 32)):
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def inputs(kind=TEXT, count=1, factor=8, **given):
    return read_image_inputs(model(kind, factor), Arguments.of(given), count)


@pytest.mark.parametrize("kind", TASKS, ids=lambda task: task.name)
def test_kinds(kind):
    assert task_of("model", CHANNELS[kind], 4, varies=kind is VARIATION) is kind


def test_channels_of_no_kind():
    with pytest.raises(ValueError, match="model has a U-Net of 6 channels, 4 of them latents"):
        task_of("model", 6, 4, varies=False)


def test_text_alone():
    made = inputs(count=2)
    assert (made.height, made.width, made.strengths, made.begun, made.uses) == (
        128,
        128,
        (None, None),
        False,
        ("start",),
    )


def test_sizes():
    assert (inputs(image=picture(67, 50)).height, inputs(image=picture(67, 50)).width) == (48, 64)
    made = inputs(image=picture(), height=96, width=80)
    assert made.pixels.shape == (1, 96, 80, 3) and made.sources[0].size == (64, 48)  # as given
    made = inputs(UPSCALING, factor=4, image=picture(10, 6))
    assert (made.height, made.width, made.pixels.shape) == (24, 40, (1, 6, 10, 3))


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (TEXT, {"image": picture(100, 100)}, "image= is 100 x 100 and the result 96 x 96: sides are multiples of 8"),
        (PIX2PIX, {"image": picture(67, 64)}, "67 x 64 and the result 64 x 64"),
        (TEXT, {"image": picture(67, 64), "mask": spot(67, 64)}, "67 x 64 and the result 64 x 64"),
        (INPAINTING, {"image": picture(64, 50), "mask": spot(64, 50)}, "64 x 50 and the result 64 x 48"),
        (TEXT, {"image": picture(100, 64), "height": 96}, "100 x 64 and the result 96 x 96"),
        (TEXT, {"image": picture(64, 48)}, None),
        (TEXT, {"image": picture(100, 100), "height": 64, "width": 64}, None),
        (TEXT, {"image": picture(100, 64), "width": 64}, None),
        (TEXT, {"image": picture(100, 100), "mask": spot(100, 100), "mask_crop": 4}, None),
        (UPSCALING, {"image": picture(10, 7)}, None),
        (VARIATION, {"image": picture(100, 100)}, None),
    ],
)
def test_a_picture_that_comes_out_smaller_is_told(kind, given, said):
    """CASES.md C 5."""
    found = resized(model(kind), Arguments.of(given), inputs(kind, **given))
    assert said in found and "Give width= and height=" in found if said else found == ""


@pytest.mark.parametrize(
    ("given", "count", "says"),
    [
        ({"height": 8_000_000_000}, 1, "height must be at most 16,384 pixels"),
        ({"width": 10**400}, 1, "width must be at most 16,384 pixels"),
        ({"width": float("inf")}, 1, "width must be at most"),
        ({"width": 64.0}, 1, "width must be a multiple of 8, not 64.0"),
        ({"height": 16_384, "width": 16_384}, 5, "1,342,177,280 pixels, and a call makes at most 1,073,741,824"),
        ({"image": picture(), "height": 1024, "width": 1024}, 2000, "fewer or smaller pictures at once"),
    ],
)
def test_what_no_memory_holds_is_refused_first(given, count, says):
    """CASES.md B 14, before an array of that size is made."""
    with pytest.raises(ValueError, match=says):
        inputs(count=count, **given)


def test_a_huge_picture_may_be_made_smaller():
    huge = Image.new("RGB", (5000, 16))
    with pytest.raises(ValueError, match="height= and width="):
        inputs(image=huge)
    assert inputs(image=huge, height=64, width=64).pixels.shape == (1, 64, 64, 3)


def test_one_picture_for_all_and_one_each():
    made = inputs(count=3, image=picture(), strength=[0.2, 0.5, 1.0])
    assert made.pixels.shape[0] == 3 and made.strengths == (0.2, 0.5, None)
    two = [picture(), picture()]
    made = inputs(count=2, image=two)
    np.testing.assert_array_equal(np.rint((made.pixels + 1) * 127.5), np.stack([np.asarray(one) for one in two]))
    assert inputs(count=2, image=np.stack([np.asarray(one) for one in two])).pixels.shape == (2, 48, 64, 3)


def test_default_strengths():
    assert inputs(image=picture()).strengths == (0.8,)
    assert inputs(image=picture(), mask=spot()).strengths == (None,)
    assert inputs(PIX2PIX, image=picture()).strengths == (None,)


def test_masks():
    made = inputs(image=picture(), mask=spot())
    assert made.mask.sum() == 24 * 24 and made.latent_mask.shape == (1, 6, 8, 1) and made.latent_mask.sum() == 9
    soft = inputs(image=picture(), mask=spot(), mask_blur=3)
    assert ((soft.mask > 0) & (soft.mask < 1)).any() and soft.uses == ("encoding", "start", "masked")
    hard = inputs(INPAINTING, image=picture(), mask=spot(), mask_blur=3)
    assert set(np.unique(hard.mask)) == {0, 1} and hard.uses == ("start", "masked")
    assert not hard.hidden[hard.mask[..., 0] == 1].any() and hard.hidden[hard.mask[..., 0] == 0].any()
    assert inputs(INPAINTING, image=picture(), mask=spot(), strength=0.5).uses == ("encoding", "start", "masked")


def test_pasting():
    below, mask = picture(), spot()
    made = inputs(image=below, mask=mask).paste(np.full((1, 48, 64, 3), 7, np.uint8))[0]
    hidden = np.asarray(mask) == 255
    np.testing.assert_array_equal(made[~hidden], np.asarray(below)[~hidden])
    assert (made[hidden] == 7).all()


def test_a_cropped_region_goes_back_into_the_whole_picture():
    below, mask = picture(200, 150), spot(200, 150, (90, 60, 110, 80))
    made = inputs(image=below, mask=mask, mask_crop=6, height=64, width=64)
    assert (made.pixels.shape, made.under[0][2]) == ((1, 64, 64, 3), (84, 54, 116, 86))
    pasted = made.paste(np.full((1, 64, 64, 3), 9, np.uint8))[0]
    assert pasted.shape == (150, 200, 3) and (pasted[60:80, 90:110] == 9).all()
    pasted[60:80, 90:110] = np.asarray(below)[60:80, 90:110]
    np.testing.assert_array_equal(pasted, np.asarray(below))


def test_latents():
    latents, mask = RNG.standard_normal((2, 6, 8, 4), np.float32), np.zeros((1, 6, 8, 1), np.float32)
    mask[:, :3] = 0.5
    made = inputs(count=2, image=latents, mask=mask, strength=0.4)
    assert (made.height, made.width, made.begun, made.uses) == (48, 64, True, ("start",))
    np.testing.assert_array_equal(made.latents, latents)
    np.testing.assert_array_equal(made.latent_mask, np.broadcast_to(mask, (2, 6, 8, 1)))
    assert inputs(count=2, image=latents, mask=spot()).latent_mask.sum() == 2 * 9


def test_growing():
    wider, mask = grow(picture(), right=16, ramp=4)
    made = inputs(image=wider, mask=mask)
    assert (made.height, made.width) == (48, 80) and made.latent_mask[0, :, 8:].all()


LATENTS = np.zeros((1, 6, 8, 4), np.float32)


@pytest.mark.parametrize(
    "kind, given, message",
    [
        (TEXT, {"mask": spot()}, "mask= belongs to a picture"),
        (TEXT, {"strength": 0.5}, "strength= belongs to a picture"),
        (TEXT, {"image": picture(), "strength": 1.2}, "strength must be a number from 0"),
        (TEXT, {"image": picture(), "strength": [0.2, 0.3]}, "strength has 2 entries for 1"),
        (TEXT, {"image": [picture(), picture()]}, "image has 2 entries for 1"),
        (TEXT, {"image": []}, "image is an empty list"),
        (TEXT, {"image": picture(), "mask": spot(32, 48)}, "mask is 32 x 48 and the picture 64 x 48"),
        (TEXT, {"image": picture(), "mask": Image.new("L", (64, 48))}, "black all over"),
        (TEXT, {"image": picture(), "mask": Image.new("L", (64, 48), 255)}, "leave mask= out"),
        (TEXT, {"image": picture(), "mask": spot(), "mask_blur": -1}, "mask_blur must be"),
        (TEXT, {"image": picture(), "mask": spot(), "mask_crop": -1}, "mask_crop must be"),
        (TEXT, {"image": picture(), "mask_blur": 2}, "give mask="),
        (TEXT, {"image": picture(), "mask": spot(), "mask_crop": 8, "regions": []}, "give one of them"),
        (TEXT, {"image": picture(), "denoising_start": 0.5}, "give one of them"),
        (TEXT, {"image": picture(), "depth": picture()}, "no use for depth=; it is for a depth model"),
        (TEXT, {"image": picture(), "noise_level": 20}, "no use for noise_level=; it is for an upscaler"),
        (TEXT, {"image": picture(), "image_guidance_scale": 2.0}, "it is for InstructPix2Pix"),
        (TEXT, {"image": picture(), "height": 50}, "height must be a multiple of 8"),
        (TEXT, {"image": picture(7, 7)}, "give height= and width="),
        (INPAINTING, {}, "model for inpainting: give image= and mask="),
        (INPAINTING, {"image": picture()}, "model for inpainting: give image= and mask="),
        (INPAINTING, {"image": LATENTS, "mask": spot()}, "needs the picture itself"),
        (INPAINTING, {"image": picture(), "mask": Image.new("L", (64, 48), 100)}, "nowhere half white"),
        (PIX2PIX, {}, "model for pix2pix: give image="),
        (PIX2PIX, {"image": picture(), "mask": spot()}, "no use for mask="),
        (PIX2PIX, {"image": picture(), "strength": 0.5}, "no use for strength="),
        (UPSCALING, {}, "model for upscaling: give image="),
        (UPSCALING, {"image": picture(), "noise_level": 351}, "at most 350"),
        (UPSCALING, {"image": picture(), "noise_level": 2.5}, "noise_level must be a whole number"),
        (DEPTH, {}, "model for depth: give image=, or depth="),
        (VARIATION, {}, "image variations: give image="),
        (TEXT, {"image": np.zeros((48, 64, 3), np.float32)}, "is latents"),
        (TEXT, {"image": LATENTS * np.nan}, "NaN"),
        (TEXT, {"image": (LATENTS + 1.0).astype(float) * 1e300}, "NaN or infinite"),
        (TEXT, {"image": LATENTS, "height": 64}, "leave height and width out"),
        (TEXT, {"image": LATENTS, "mask": np.full((1, 6, 8, 1), 2.0)}, "between 0"),
        (TEXT, {"image": LATENTS, "mask": np.zeros((1, 8, 6, 1))}, r"must be \[1, 6, 8, 1\]"),
        (TEXT, {"image": LATENTS, "mask": np.ones((1, 6, 8, 1)), "mask_crop": 4}, "there is none to cut"),
    ],
)
def test_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        inputs(kind, **given)


def test_pictures_of_several_sizes():
    sizes = [picture(64, 48), picture(48, 64)]
    with pytest.raises(ValueError, match="several sizes"):
        inputs(count=2, image=sizes)
    assert inputs(count=2, image=sizes, height=64, width=64).pixels.shape == (2, 64, 64, 3)
    masks = [spot(64, 48), spot(48, 64, (8, 8, 24, 24))]
    with pytest.raises(ValueError, match="of one size"):
        inputs(count=2, image=sizes, mask=masks, mask_crop=4)
