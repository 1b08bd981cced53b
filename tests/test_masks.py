"""Masks: equations (1) to (4), boxes, and canvases that grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdjax.images import masks, read

sides = st.integers(1, 60)
seeds = st.integers(0, 2**32 - 1)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def rectangle(height: int, width: int, box: tuple[int, int, int, int], value: int = 255) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


@st.composite
def painted(draw) -> Image.Image:
    """A mask with something in it: greys in a rectangle."""
    height, width, rng = draw(sides), draw(sides), np.random.default_rng(draw(seeds))
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(0, height), rng.integers(0, width)
    part = mask[top : top + int(rng.integers(1, 30)), left : left + int(rng.integers(1, 30))]
    part[...] = rng.integers(1, 256, part.shape)
    return Image.fromarray(mask)


# Numbers -----------------------------------------------------


def test_blacks_and_whites_stay_so_and_greys_stay_soft():
    hard = rectangle(50, 50, (13, 7, 31, 44))
    for size in ((50, 50), (64, 64), (24, 80)):
        small = masks.to_mask(hard, *size)
        assert small.shape == (*size, 1) and small.dtype == np.float32
        assert set(np.unique(small)) == {0.0, 1.0}
    soft = masks.to_mask(masks.blurred(hard, 4), 64, 64)
    assert soft.min() == 0 and soft.max() <= 1 and ((soft > 0.1) & (soft < 0.9)).any()
    np.testing.assert_allclose(masks.to_mask(rectangle(8, 8, (0, 0, 8, 8), 51), 8, 8), 0.2, atol=1e-7)


def test_blur():
    """A Gaussian's standard deviation: the edge's slope is that of its distribution function."""
    edge = rectangle(8, 200, (100, 0, 200, 8))
    soft = np.asarray(masks.blurred(edge, 10), float)[4] / 255
    at = np.arange(200) + 0.5 - 100
    logistic = 1 / (1 + np.exp(-1.702 * at / 10))  # within 0.01 of the Gaussian's
    np.testing.assert_allclose(soft, logistic, atol=0.03)
    same = masks.blurred(edge, 0)
    assert same is not edge
    np.testing.assert_array_equal(same, edge)
    np.testing.assert_array_equal(masks.blurred(edge, np.float32(2)), masks.blurred(edge, 2))
    for radius in (-1, float("nan"), float("inf"), "4", None, True):
        with pytest.raises(ValueError, match="mask_blur must be a number of pixels >= 0"):
            masks.blurred(edge, radius)


@pytest.mark.parametrize("radius", [1e5, 1e10, 10**400, 4097])
def test_a_blur_beyond_all_pictures_is_refused(radius):
    """CASES.md B 17 and 19."""
    with pytest.raises(ValueError, match="mask_blur must be a number of pixels >= 0 and at most 4096"):
        masks.blurred(rectangle(16, 16, (4, 4, 8, 8)), radius)


def test_a_blur_that_leaves_nothing_is_told():
    """CASES.md B 19: black after the blur. And nearly so: one pixel in 81 becomes 1 / (2 pi) of white at most."""
    with pytest.raises(ValueError, match="mask_blur=64 spreads the white so thin that the mask is black all over"):
        masks.blurred(rectangle(200, 200, (100, 100, 101, 101)), 64)
    with pytest.warns(UserWarning, match="mask_blur=1 leaves the mask at most 1[0-9] % white"):
        masks.blurred(rectangle(9, 9, (4, 4, 5, 5)), 1)


def test_on_the_latents():
    mask = np.arange(16 * 24, dtype=np.float32).reshape(16, 24, 1)
    small = masks.latent_mask(mask, 8)
    assert small[..., 0].tolist() == [[0, 8, 16], [192, 200, 208]]
    assert masks.latent_mask(mask[:15, :23], 8).shape == (1, 2, 1)
    np.testing.assert_array_equal(masks.latent_mask(mask, 1), mask)
    assert not masks.latent_mask(np.zeros((16, 16, 1), np.float32), 8).any()
    with pytest.raises(ValueError, match="too small.*8 x 8 pixels.*mask_crop="):
        masks.latent_mask(masks.to_mask(rectangle(64, 64, (9, 9, 15, 15)), 64, 64), 8)


def test_what_an_inpainting_model_is_shown():
    pixels = read.to_pixels(picture(8, 8), 8, 8)
    mask = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    shown = masks.masked(pixels, mask)
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown[:4], pixels[:4])
    np.testing.assert_array_equal(shown[4:], 0)
    assert not masks.masked(pixels, np.full((8, 8, 1), 0.5, np.float32)).any()


def test_check_mask():
    image = picture(20, 30)
    masks.check_mask(rectangle(20, 30, (3, 3, 9, 9)), image)
    masks.check_mask(rectangle(20, 30, (0, 0, 30, 20), 128), image)
    masks.check_mask(rectangle(20, 30, (0, 0, 30, 20)), image, full=True)
    for mask, message in [
        (rectangle(30, 20, (3, 3, 9, 9)), "mask is 20 x 30 and the picture 30 x 20"),
        (rectangle(20, 30, (0, 0, 0, 0)), "mask is black all over.*white is what is painted anew"),
        (rectangle(20, 30, (0, 0, 30, 20)), "mask is white all over.*leave mask= out"),
    ]:
        with pytest.raises(ValueError, match=message):
            masks.check_mask(mask, image)
    with pytest.raises(ValueError, match=r"regions\[0\] is black"):
        masks.check_mask(rectangle(20, 30, (0, 0, 0, 0)), image, "regions[0]", full=True)


# Boxes -------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(painted(), st.integers(0, 40), st.integers(1, 100), st.integers(1, 100))
def test_the_box_holds_the_mask_lies_in_the_picture_and_has_the_aspect(mask, padding, height, width):
    left, top, right, bottom = masks.crop_box(mask, padding, height, width)
    assert 0 <= left < right <= mask.width and 0 <= top < bottom <= mask.height
    rows, columns = np.nonzero(np.asarray(mask))
    assert left <= max(columns.min() - padding, 0) and right >= min(columns.max() + 1 + padding, mask.width)
    assert top <= max(rows.min() - padding, 0) and bottom >= min(rows.max() + 1 + padding, mask.height)
    wide, high, aspect = right - left, bottom - top, width / height
    # Too wide by less than a pixel, or too high, unless the picture ends there.
    assert high == mask.height or wide < (high + 1) * aspect * (1 + 1e-9)
    assert wide == mask.width or high < (wide + 1) / aspect * (1 + 1e-9)


def test_boxes():
    assert masks.crop_box(rectangle(100, 100, (40, 50, 50, 60)), 5, 64, 64) == (35, 45, 55, 65)
    assert masks.crop_box(rectangle(100, 100, (40, 50, 50, 60)), 0, 64, 128) == (35, 50, 55, 60)
    assert masks.crop_box(rectangle(100, 100, (0, 0, 10, 40)), 0, 64, 64) == (0, 0, 40, 40)
    assert masks.crop_box(rectangle(100, 100, (90, 0, 100, 40)), 0, 64, 64) == (60, 0, 100, 40)
    assert masks.crop_box(rectangle(20, 100, (0, 0, 60, 10)), 0, 64, 64) == (0, 0, 60, 20)
    # 21 * (136 / 56) is 51 less a rounding error, which must not cost the box a pixel.
    assert masks.crop_box(rectangle(99, 99, (10, 30, 61, 51)), 0, 56, 136) == (10, 30, 61, 51)
    with pytest.raises(ValueError, match="black all over"):
        masks.crop_box(Image.new("L", (9, 9)), 3, 64, 64)


@settings(max_examples=200, deadline=None)
@given(painted(), seeds, sides, sides, st.data())
def test_pasting_keeps_the_original_to_the_last_bit(mask, seed, high, wide, data):
    original, made = picture(mask.height, mask.width, seed), picture(high, wide, seed + 1)
    left, top = data.draw(st.integers(0, mask.width - 1)), data.draw(st.integers(0, mask.height - 1))
    right = data.draw(st.integers(left + 1, mask.width))
    box = data.draw(st.sampled_from([None, (left, top, right, mask.height)]))
    before = np.array(original)
    result = masks.paste(made, original, mask, box)
    assert result.mode == "RGB" and result.size == original.size
    left, top, right, bottom = box or (0, 0, mask.width, mask.height)
    inside = np.zeros((mask.height, mask.width), bool)
    inside[top:bottom, left:right] = True
    kept = (np.asarray(mask) == 0) | ~inside
    np.testing.assert_array_equal(np.asarray(result)[kept], before[kept])
    np.testing.assert_array_equal(original, before)
    there = made.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    m = np.asarray(mask, int)[top:bottom, left:right, None]
    blend = (m * np.asarray(there, int) + (255 - m) * before[top:bottom, left:right]) / 255
    np.testing.assert_array_equal(np.asarray(result)[top:bottom, left:right], np.rint(blend))


def test_paste_refuses_what_does_not_fit():
    original, made = picture(20, 30), picture(8, 8)
    with pytest.raises(ValueError, match="mask is 20 x 30 and the picture 30 x 20"):
        masks.paste(made, original, Image.new("L", (20, 30)))
    for box in [(0, 0, 31, 20), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 5, 5, 9)]:
        with pytest.raises(ValueError, match="does not lie in the picture of 30 x 20"):
            masks.paste(made, original, Image.new("L", (30, 20)), box)


# Canvases that grow ------------------------------------------


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.tuples(*[st.integers(0, 20)] * 4).filter(any), st.integers(0, 12), seeds)
def test_the_old_picture_stays_and_the_mask_is_white_on_the_new(height, width, grown, ramp, seed):
    image = picture(height, width, seed)
    left, top, right, bottom = grown
    ramps = ramp * ((left > 0) + (right > 0)), ramp * ((top > 0) + (bottom > 0))
    if (ramps[0] and ramps[0] >= width) or (ramps[1] and ramps[1] >= height):
        with pytest.raises(ValueError, match=f"a ramp of {ramp} pixels leaves nothing"):
            masks.grow(image, *grown, ramp)
        return
    canvas, mask = masks.grow(image, *grown, ramp)
    assert canvas.mode == "RGB" and mask.mode == "L"
    assert canvas.size == mask.size == (left + width + right, top + height + bottom)
    pixels, white = np.asarray(canvas), np.asarray(mask)
    np.testing.assert_array_equal(pixels[top : top + height, left : left + width], image)
    rows, columns = np.mgrid[: canvas.height, : canvas.width]
    nearest = np.clip(rows - top, 0, height - 1), np.clip(columns - left, 0, width - 1)
    np.testing.assert_array_equal(pixels, np.asarray(image)[nearest])
    far = 10**6  # distance in pixels from the nearest edge that grew; 0 on the new part, 1 on the first old pixel
    distance = np.min(
        [
            columns - left + 1 if left else far + 0 * rows,
            left + width - columns if right else far + 0 * rows,
            rows - top + 1 if top else far + 0 * rows,
            top + height - rows if bottom else far + 0 * rows,
        ],
        axis=0,
    )
    expected = np.clip(1 - np.maximum(distance, 0) / (ramp + 1), 0, 1)
    np.testing.assert_allclose(white, 255 * expected, atol=0.5001)
    assert (white[distance <= 0] == 255).all() and (white[distance > ramp] == 0).all()
    masks.check_mask(mask, canvas)


def test_a_ramp():
    mask = np.asarray(masks.grow(picture(4, 10), left=2, right=1, ramp=3)[1])
    assert mask[2].tolist() == [255, 255, 191, 128, 64, 0, 0, 0, 0, 64, 128, 191, 255]


@pytest.mark.parametrize(
    "given_sizes,message",
    [
        ({}, "nothing to grow: give left, top, right or bottom"),
        ({"ramp": 4}, "nothing to grow"),
        ({"left": -8}, "left must be a whole number of pixels >= 0, not -8"),
        ({"top": 2.5}, "top must be .* not 2.5"),
        ({"right": True}, "right must be"),
        ({"bottom": "8"}, "bottom must be"),
        ({"left": 8, "ramp": -1}, "ramp must be"),
        ({"left": 8192}, "left and right make a side of 8222 pixels; at most 8192"),
        ({"top": 8, "ramp": 20}, "a ramp of 20 pixels leaves nothing of the picture's 20 as it is"),
        ({"left": 8, "right": 8, "ramp": 15}, "a ramp of 15 pixels leaves nothing of the picture's 30"),
    ],
)
def test_sizes_that_a_canvas_cannot_grow_by(given_sizes, message):
    with pytest.raises(ValueError, match=message):
        masks.grow(picture(20, 30), **given_sizes)
