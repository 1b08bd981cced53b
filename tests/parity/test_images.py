"""Pictures and masks become the numbers that diffusers' VaeImageProcessor makes of them."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from sdjax.images import masks, read

SIZES = [(64, 64), (40, 88), (128, 24)]  # height, width


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def strokes(height: int, width: int, seed: int = 0, soft: bool = False) -> Image.Image:
    """A mask of a few rectangles, or of any greys inside one."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, height), rng.integers(0, width)
        part = mask[y : y + int(rng.integers(1, 20)), x : x + int(rng.integers(1, 20))]
        part[...] = rng.integers(0, 256, part.shape) if soft else 255
    return Image.fromarray(mask)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("source", [(64, 64), (100, 37), (1, 1), (301, 200)])
def test_pictures(source, size):
    image = picture(*source)
    theirs = VaeImageProcessor().preprocess(image, *size)[0].permute(1, 2, 0).numpy()
    ours = read.to_pixels(image, *size)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("height,width", [(64, 64), (65, 71), (8, 15), (200, 9)])
@pytest.mark.parametrize("multiple", [8, 4])
def test_natural_size(height, width, multiple):
    processor, image = VaeImageProcessor(vae_scale_factor=multiple), picture(height, width)
    assert read.natural_size(image, multiple) == processor.get_default_height_width(image)
    pixels = read.to_pixels(image, *read.natural_size(image, multiple))
    np.testing.assert_array_equal(pixels, processor.preprocess(image)[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_masks(size, soft):
    """diffusers cuts every mask at 1/2; our soft ones are what theirs are before that."""
    mask = strokes(100, 90, soft=soft)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=not soft, do_convert_grayscale=True)
    theirs = processor.preprocess(mask, *size)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(masks.to_mask(mask, *size), theirs)


@pytest.mark.parametrize("radius", [1, 4, 33])
def test_blur(radius):
    mask = strokes(100, 90)
    np.testing.assert_array_equal(masks.blurred(mask, radius), VaeImageProcessor.blur(mask, radius))


def test_the_box_of_a_mask():
    rng = np.random.default_rng(1)
    for seed in range(2000):
        mask = strokes(*map(int, rng.integers(1, 200, 2)), seed)
        height, width = (8 * int(side) for side in rng.integers(1, 40, 2))
        padding = int(rng.integers(0, 50))
        theirs = VaeImageProcessor.get_crop_region(mask, width, height, padding)
        assert masks.crop_box(mask, padding, height, width) == theirs


def test_paste_without_a_box():
    made, original = picture(90, 100, 1), picture(90, 100, 2)
    for soft, tolerance in ((False, 0), (True, 2)):  # theirs rounds three times, by way of premultiplied colours
        mask = strokes(90, 100, 5, soft)
        theirs = VaeImageProcessor().apply_overlay(mask, original, made)
        ours = masks.paste(made, original, mask)
        np.testing.assert_allclose(np.asarray(ours, int), np.asarray(theirs, int), atol=tolerance)


def test_paste_in_a_box():
    made, original = picture(64, 128, 1), picture(90, 100, 2)
    box = (20, 30, 84, 62)  # of the same aspect, where diffusers cuts nothing off
    mask = Image.new("L", original.size)
    mask.paste(255, (22, 31, 80, 60))
    theirs = VaeImageProcessor().apply_overlay(mask, original, made, box)
    np.testing.assert_array_equal(masks.paste(made, original, mask, box), theirs)


@pytest.mark.parametrize("height,width", [(64, 40), (67, 45)])
def test_masks_on_the_latents(height, width):
    mask = np.random.default_rng(0).random((height, width, 1), np.float32)
    size = (height // 8, width // 8)
    if height % 8 == width % 8 == 0:
        theirs = torch.nn.functional.interpolate(torch.from_numpy(mask).permute(2, 0, 1)[None], size=size)
        np.testing.assert_array_equal(masks.latent_mask(mask, 8), theirs[0].permute(1, 2, 0).numpy())
    assert masks.latent_mask(mask, 8).shape == (*size, 1)


def test_what_an_inpainting_model_is_shown():
    pixels, mask = read.to_pixels(picture(64, 40), 64, 40), masks.to_mask(strokes(64, 40, soft=True), 64, 40)
    theirs = torch.from_numpy(pixels) * (torch.from_numpy(mask) < 0.5)  # as pipeline_stable_diffusion_inpaint.py has it
    np.testing.assert_array_equal(masks.masked(pixels, mask), theirs.numpy())
