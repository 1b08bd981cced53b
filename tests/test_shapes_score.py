"""The scorer: right captions pass, wrong ones do not, noise and blur do not matter, errors have names."""

import collections
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import shapes
from experiments.shapes.objects import find_objects, label, nearest_colour
from experiments.shapes.score import CHANGES, Verdict, score, wilson, wrong_scene
from experiments.shapes.world import COLOURS, Scene, examples, parse_caption, render, shape_mask

COUNT = 400


@pytest.fixture(scope="module")
def rendered() -> list[tuple[np.ndarray, Scene]]:
    return list(examples(11, 0, COUNT, pairs="any"))


def _picture(caption: str, seed: int = 0) -> np.ndarray:
    return render(parse_caption(caption), np.random.default_rng(seed))


def _rough(picture: np.ndarray, rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """The picture blurred by (1 2 1)/4 in both directions, with noise of 4 levels and shifted colours."""
    soft = picture.astype(np.float64)
    for axis in (0, 1):
        wide = np.pad(soft, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        parts = [np.take(wide, np.arange(128) + k, axis) for k in range(3)]
        soft = (parts[0] + 2 * parts[1] + parts[2]) / 4
    soft += rng.normal(0, 4, soft.shape) + rng.uniform(-shift, shift, 3)
    return np.rint(soft).clip(0, 255).astype(np.uint8)


def test_rendered_pictures_pass(rendered):
    passed = [score(picture, scene.caption()).ok for picture, scene in rendered]
    assert np.mean(passed) >= 0.99


def test_wrong_captions_do_not(rendered):
    rng = np.random.default_rng(0)
    passed = collections.defaultdict(list)
    for picture, scene in rendered:
        for kind in CHANGES:
            wrong = wrong_scene(scene, kind, rng)
            if wrong is not None:
                assert wrong != scene
                verdict = score(picture, wrong)
                passed[kind].append(verdict.ok)
                assert verdict.ok or kind in verdict.errors
    assert set(passed) == set(CHANGES)
    for kind, oks in passed.items():
        assert len(oks) >= 100 and np.mean(oks) <= 0.01, kind


@pytest.mark.parametrize("shift", [0, 20])
def test_noise_blur_and_shifted_colours_do_not_matter(rendered, shift):
    rng = np.random.default_rng(1)
    passed = [score(_rough(picture, rng, shift), scene).ok for picture, scene in rendered]
    assert np.mean(passed) >= 0.97


@pytest.mark.parametrize(
    ("shown", "asked", "errors"),
    [
        ("a red circle on a white background", "a red circle on a black background", ("background",)),
        ("a red circle", "a blue circle", ("colour",)),
        ("a red ring", "a red circle", ("shape",)),
        ("a large red ring", "a small red ring", ("size",)),
        ("a red star above a blue ring", "a red star below a blue ring", ("relation",)),
        ("a red star above a blue ring", "a red star to the left of a blue ring", ("relation",)),
        ("a red star above a blue ring", "a red ring above a blue star", ("shape",)),
        ("a small red star on a gray background", "a large red cross on a black background",
         ("background", "shape", "size")),
    ],
)  # fmt: skip
def test_every_error_has_its_name(shown, asked, errors):
    for seed in range(5):
        picture = _picture(shown, seed)
        assert score(picture, shown) == Verdict(True, ())
        assert score(picture, asked) == Verdict(False, errors)


def test_missing_and_further_objects_are_errors_of_count():
    both = "a red star to the left of a blue ring on a white background"
    assert "count" in score(_picture("a red star on a white background"), both).errors
    assert "count" in score(_picture(both), "a red star on a white background").errors
    empty = np.full((128, 128, 3), 245, np.uint8)
    assert score(empty, both) == Verdict(False, ("count",))
    blob = _picture("a small red square on a white background")
    assert score(blob, "a small red square").ok
    blob[2:10, 2:10] = COLOURS["blue"]
    assert score(blob, "a small red square").errors == ("count",)


def test_a_speck_does_not_count():
    picture = _picture("a small red square on a white background")
    picture[4:8, 4:8] = COLOURS["blue"]
    assert score(picture, "a small red square on a white background").ok


def test_uneven_colours_are_errors():
    picture = _picture("a large red square on a white background")
    half = picture.copy()
    half[:64][(half[:64] == COLOURS["red"]).all(2)] = COLOURS["blue"]
    assert "colour" in score(half, "a large red square").errors
    torn = picture.copy()
    torn[:64][(torn[:64] == COLOURS["white"]).all(2)] = COLOURS["black"]
    assert "background" in score(torn, "a large red square").errors


def test_a_stretched_outline_is_an_error_of_shape():
    picture = np.full((128, 128, 3), 245, np.uint8)
    picture[50:80, 30:100] = COLOURS["red"]
    assert "shape" in score(picture, "a red square").errors


def test_found_objects_are_measured():
    picture = np.full((128, 128, 3), 20, np.uint8)
    part = shape_mask("heart", 40)[..., None]
    picture[30:70, 16:56] = np.rint(part * COLOURS["pink"] + (1 - part) * 20)
    picture[80:112, 64:96] = COLOURS["cyan"]
    background, (square, heart) = find_objects(picture)
    assert (background.colour, background.even) == ("black", True)
    assert (heart.colour, heart.shape, square.colour, square.shape) == ("pink", "heart", "cyan", "square")
    assert (square.x, square.y, square.width, square.height) == (80 / 128, 96 / 128, 0.25, 0.25)
    # The heart's lowest two rows are covered by less than half: its box is found shorter by that.
    assert square.overlap == 1.0 and heart.overlap > 0.9
    assert (heart.x, heart.width) == pytest.approx((36 / 128, 40 / 128), abs=2 / 128)


def test_labels_are_the_connected_parts():
    def flood(mask):
        labels, number = np.zeros(mask.shape, int), 0
        for start in zip(*np.nonzero(mask), strict=True):
            todo = [start] if not labels[start] else []
            number += bool(todo)
            while todo:
                y, x = todo.pop()
                if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                    labels[y, x] = number
                    todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        return labels, number

    rng = np.random.default_rng(0)
    for density in (0.0, 0.3, 0.6, 0.9, 1.0):
        mask = rng.random((23, 31)) < density
        (labels, number), (expected, expected_number) = label(mask), flood(mask)
        assert number == expected_number
        assert ((labels > 0) == mask).all()
        pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True)) - {(0, 0)}
        assert len(pairs) == number, "one to one"


def test_nearest_colour_holds_within_20_levels():
    rng = np.random.default_rng(0)
    for name, rgb in COLOURS.items():
        assert nearest_colour(rgb) == name
        assert all(nearest_colour(rgb + rng.uniform(-20, 20, 3)) == name for _ in range(50))


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((128, 128, 3), np.float32),
        np.zeros((128, 128), np.uint8),
        np.zeros((128, 64, 3), np.uint8),
        np.zeros((4, 128, 128, 3), np.uint8),
    ],
)
def test_what_is_no_picture_raises(picture):
    with pytest.raises(ValueError, match=r"uint8 \[s, s, 3\]"):
        score(picture, "a red circle")


def test_what_is_no_caption_raises():
    with pytest.raises(ValueError, match="no caption"):
        score(np.zeros((128, 128, 3), np.uint8), "two dogs")
    with pytest.raises(ValueError, match="nothing to change"):
        wrong_scene(parse_caption("a red circle"), "mood", np.random.default_rng(0))


def test_wilson_interval():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                    (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError, match="at least 1"):
        wilson(0, 0)


def test_from_one_place():
    """The short names; a picture may be PIL's, and a scene is written as its caption."""
    scene = shapes.sample_scene(np.random.default_rng(0))
    assert str(scene) == f"{scene}" == scene.caption() and str(scene.things[0]) == scene.things[0].phrase()
    picture = Image.fromarray(shapes.render(scene, np.random.default_rng(0)))
    assert shapes.score(picture, str(scene)).ok and shapes.score is score
    assert not shapes.score(picture.rotate(180), "a red circle above a blue square").ok
    with pytest.raises(ValueError, match=r"a picture is uint8 \[s, s, 3\]; this one is uint8 \[128, 128\]"):
        shapes.score(picture.convert("L"), scene)


def test_the_program_says_nothing_of_how_it_is_imported():
    command = [sys.executable, "-m", "experiments.shapes.score", "--count=5"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("right captions pass          5 of 5")
