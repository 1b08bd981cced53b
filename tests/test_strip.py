"""Strips and animations of steps: what is where, what is written, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from experiments import grid
from sdjax.images import sheet
from sdjax.images.pixels import from_uint8
from sdjax.metadata import picture
from sdjax.sampling import strip
from sdjax.sampling.trace import Step

COLOURS = np.array([[200, 30, 30], [30, 160, 60], [40, 60, 210], [240, 210, 50]], np.uint8)


def steps(count: int = 3, b: int = 2) -> list[Step]:
    """Latents of one place that name a colour: x_t of step n and picture i is n, its jump n + 1."""
    made = []
    for n in range(count):
        x = np.full((b, 2, 2, 1), n, np.float32)
        made.append(Step(5 * n, 5 * count, 900.25 - n, 14.61 / (n + 1), x, x + 1))
    return made


def decode(latents: np.ndarray) -> np.ndarray:
    """Latents `b 2 2 1` -> flat pictures uint8 `b 16 16 3`."""
    colours = COLOURS[latents[:, 0, 0, 0].astype(int)]
    return np.broadcast_to(colours[:, None, None], (len(latents), 16, 16, 3))


def colour_at(image: Image.Image, column: int, row: int, width: int = 128) -> list[int]:
    """The colour of a cell of a strip, in its middle. Rows are those of pictures, as the strip has them."""
    tops, y = [], sheet.GAP
    for i in range(row + 1):
        tops.append(y)
        y += width + 4 + sheet.LINE * (2 - i % 2) + sheet.GAP
    return list(image.getpixel((sheet.GAP + column * (width + sheet.GAP) + width // 2, tops[row] + width // 2)))


# The strip -------------------------------------------------------------------------------------------


def test_a_step_is_a_column_the_jump_below():
    image = strip.strip(strip.develop(steps(), decode))
    assert image.mode == "RGB" and image.width == 3 * (128 + sheet.GAP) + sheet.GAP
    for row in range(4):  # two pictures
        for column in range(3):
            assert colour_at(image, column, row) == COLOURS[column + row % 2].tolist(), (column, row)


def test_one_picture_alone():
    changed = [replace(one, denoised=one.denoised + np.reshape([0, -1], (2, 1, 1, 1))) for one in steps()]
    image = strip.strip(strip.develop(changed, decode), chosen=1, width=64)
    assert [colour_at(image, column, 1, 64) for column in range(3)] == COLOURS[:3].tolist()
    assert image.height == 2 * (64 + 4 + sheet.GAP) + 3 * sheet.LINE + sheet.GAP


def test_captions_have_number_t_and_sigma(monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(strip, "sheet", lambda pictures, captions, columns: seen.extend(captions))
    strip.strip(strip.develop(steps(2, 1), decode))
    assert seen == [
        "step 0, t 900.2\nsigma 14.6", "step 5, t 899.2\nsigma 7.3", "jump from step 0", "jump from step 5"
    ]  # fmt: skip


def test_captions_are_drawn_and_differ():
    first, second = (np.asarray(sheet.sheet([Image.new("RGB", (128, 4))], [text], 1)) for text in ("step 1", "step 2"))
    below = sheet.GAP + 4
    assert (first[below + 1 :] < 128).any() and (first != second).any()
    np.testing.assert_array_equal(first[: below + 1], second[: below + 1])


def test_the_longest_caption_fits_its_column():
    longest = Step(127, 128, 951.25, 0.000292, np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    image = np.asarray(strip.strip(strip.develop([longest], decode)))
    assert (image[:, -sheet.GAP + 1 :] == 255).all()


def test_pixels_as_floats_are_the_same():
    as_floats = strip.develop(steps(), lambda latents: from_uint8(decode(latents)))
    for one, other in zip(strip.develop(steps(), decode), as_floats, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        np.testing.assert_array_equal(one.jump, other.jump)


def test_each_latent_is_decoded_once():
    calls = []
    frames = strip.develop(steps(), lambda latents: calls.append(len(latents)) or decode(latents))
    strip.strip(frames)
    strip.strip(frames, 1)
    assert calls == [2] * 6  # the batch as the run had it, which its program knows


def test_no_steps_is_told():
    with pytest.raises(ValueError, match="give generate show_steps=True"):
        strip.develop((), decode)


@pytest.mark.parametrize("chosen", [-1, 2])
def test_a_picture_that_is_none_is_told(chosen):
    with pytest.raises(ValueError, match=f"chosen must be a picture's number, 0 to 1, not {chosen}"):
        strip.strip(strip.develop(steps(), decode), chosen)


# The sheet, which the grid shares --------------------------------------------------------------------


def test_rows_are_as_high_as_their_longest_caption():
    pictures = [Image.new("RGB", (20, 10), tuple(colour)) for colour in COLOURS.tolist()]
    image = sheet.sheet(pictures, ["", "a\nb", "", ""], 2)
    assert image.size == (2 * 28 + 8, 8 + (10 + 4 + 2 * sheet.LINE + 8) + (10 + 4 + 8))
    for i, (x, y) in enumerate([(18, 13), (46, 13), (18, 65), (46, 65)]):
        assert list(image.getpixel((x, y))) == COLOURS[i].tolist()


def test_a_grid_is_a_sheet_of_prompts():
    pixels = np.stack([np.full((32, 64, 3), colour, np.uint8) for colour in COLOURS[:3]])
    image = grid.labelled(pixels, ["a prompt", "a prompt that takes two lines", "a"], 2)
    assert image.width == 2 * (128 + 8) + 8
    assert image.getpixel((72, 40)) == tuple(COLOURS[0]) and image.getpixel((208, 40)) == tuple(COLOURS[1])
    assert sheet.wrapped("a prompt that takes two lines", 128) == ("a prompt that\ntakes two lines")


# The animation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.webp", "run.gif", "new/RUN.GIF"])
def test_frames_are_the_jumps_and_the_last_is_held(tmp_path, name):
    path = strip.animation(strip.develop(steps(), decode), tmp_path / name, seconds=1.5, chosen=0)
    assert path == tmp_path / name and [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]
    with Image.open(path) as image:
        assert image.format == path.suffix[1:].upper() and image.n_frames == 3 and image.info["loop"] == 0
        durations = []
        for i, frame in enumerate(ImageSequence.Iterator(image)):
            middle = np.array(frame.convert("RGB").getpixel((72, 72)), int)
            assert np.abs(middle - COLOURS[i + 1]).max() < 12, i
            durations.append(frame.info["duration"])
    assert durations == [500, 500, 2000]


def test_all_pictures_are_side_by_side(tmp_path):
    with Image.open(strip.animation(strip.develop(steps(2), decode), tmp_path / "run.webp")) as image:
        assert image.width == 2 * (128 + sheet.GAP) + sheet.GAP


@pytest.mark.parametrize("name", ["run.mp4", "run", "run.png"])
def test_another_ending_is_told_with_those_that_do(tmp_path, name):
    with pytest.raises(ValueError, match=r"an animation is a \.webp or a \.gif; name it run\.webp"):
        strip.animation(strip.develop(steps(), decode), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none_are_told(tmp_path, seconds):
    with pytest.raises(ValueError, match="seconds must be a number above 0"):
        strip.animation(strip.develop(steps(), decode), tmp_path / "run.gif", seconds)
    assert not list(tmp_path.iterdir())


def test_what_webp_cannot_hold_is_told(tmp_path):
    frames = strip.develop(steps(1, 130), decode)
    with pytest.raises(ValueError, match=r"a \.webp holds 16383 pixels a side and 17688 are needed: chosen=0"):
        strip.animation(frames, tmp_path / "run.webp")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "run.gif"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(picture.os, "fsync", full)
    with pytest.raises(OSError, match="cannot be written"):
        strip.animation(strip.develop(steps(), decode), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
