"""The shapes world: its captions, what scenes are drawn, and where and how the pictures show them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.shapes.world import (
    COLOURS,
    JITTER,
    MARGIN,
    MIN_GAP,
    RELATIONS,
    SHAPES,
    UNSEEN,
    VOCABULARY,
    WIDTHS,
    Scene,
    Thing,
    dataset,
    parse_caption,
    render,
    sample_scene,
    shape_mask,
)

PIXEL = 1 / 128
seeds = st.integers(0, 2**32 - 1)


def _occupied(picture: np.ndarray, axis: int) -> np.ndarray:
    """Whether each column (axis 0) or row (axis 1) holds anything but the background, the corner's colour."""
    return (picture != picture[0, 0]).any(2).any(axis)


def _runs(occupied: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], occupied, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@given(seeds, st.sampled_from(["seen", "unseen", "any"]), st.sampled_from([None, 1, 2]))
@settings(max_examples=300, deadline=None)
def test_captions_and_scenes_are_inverse(seed, pairs, things):
    scene = sample_scene(np.random.default_rng(seed), things=things, pairs=pairs)
    caption = scene.caption()
    assert parse_caption(caption) == scene
    assert set(caption.split()) <= set(VOCABULARY)
    assert things in (None, len(scene.things))
    for article, word in itertools.pairwise(caption.split()):
        if article in ("a", "an"):
            assert (article == "an") == (word == "orange")


def test_captions_read_as_specified():
    scene = Scene((Thing("orange", "ring"), Thing("red", "star", "small")), "to the left of", "blue")
    assert scene.caption() == "an orange ring to the left of a small red star on a blue background"
    assert Scene((Thing("orange", "ring", "large"),)).caption() == "a large orange ring"
    assert Scene((Thing("red", "cross"),), None, "orange").caption() == "a red cross on an orange background"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the form is"),
        ("red circle", "the form is"),
        ("a red circle ", "the form is"),
        ("a red circle below", "the form is"),
        ("a circle red", "the form is"),
        ("a red circle near a blue star", "no word 'near'"),
        ("a purpel star", "did you mean 'purple'"),
        ("A red circle", "did you mean 'a'"),
        ("an red circle", "'a red circle'"),
        ("a orange ring", "'an orange ring'"),
        ("a red circle above a red star", "differ in colour"),
        ("a red circle on a red background", "cannot be red too"),
        ("a red circle above a blue star on a blue background", "cannot be blue too"),
    ],
)
def test_anything_else_is_no_caption(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Thing("mauve", "star"),
        lambda: Thing("red", "oval"),
        lambda: Thing("red", "star", "huge"),
        lambda: Scene(()),
        lambda: Scene((Thing("red", "star"),), "above"),
        lambda: Scene((Thing("red", "star"), Thing("blue", "star"))),
        lambda: Scene((Thing("red", "star"), Thing("blue", "star")), "inside"),
        lambda: Scene((Thing("red", "star"),), None, "mauve"),
        lambda: sample_scene(np.random.default_rng(0), things=3),
        lambda: sample_scene(np.random.default_rng(0), pairs="some"),
        lambda: shape_mask("oval", 9),
        lambda: shape_mask("star", 0),
        lambda: render(Scene((Thing("red", "star"),)), np.random.default_rng(0), 8),
        lambda: dataset(0, -1, 2),
    ],
)
def test_bad_values_raise(make):
    with pytest.raises(ValueError, match="."):
        make()


def test_seen_scenes_hold_every_pair_but_the_unseen_ones():
    rng = np.random.default_rng(0)
    drawn = {(t.colour, t.shape) for _ in range(3000) for t in sample_scene(rng, pairs="seen").things}
    assert drawn == set(itertools.product(COLOURS, SHAPES)) - UNSEEN
    assert len(UNSEEN) == 6


def test_unseen_scenes_hold_an_unseen_pair():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, pairs="unseen") for _ in range(600)]
    assert all(scene.unseen() for scene in scenes)
    assert {(t.colour, t.shape) for s in scenes for t in s.things} >= UNSEEN
    firsts = [scene.things[0] for scene in scenes if len(scene.things) == 2]
    assert 0.35 < np.mean([(t.colour, t.shape) in UNSEEN for t in firsts]) < 0.65, "either of the two may be it"


def test_sizes_and_backgrounds_are_named_half_of_the_time():
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng) for _ in range(3000)]
    assert np.mean([s.background is not None for s in scenes]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([t.size is not None for s in scenes for t in s.things]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([len(s.things) for s in scenes]) == pytest.approx(1.5, abs=0.05)
    assert {s.relation for s in scenes} == {None, *RELATIONS}


def test_outlines_have_the_areas_of_the_curves():
    t = np.linspace(0, 2 * np.pi, 10001)
    heart_y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    fifth = np.pi / 5
    areas = {
        "circle": np.pi / 4,
        "square": 1,
        "triangle": 0.5,
        "diamond": 0.5,
        # Ten triangles between radii 1 and 0.42, in a box of 2 sin 72 by 1 + cos 36 degrees.
        "star": 5 * 0.42 * np.sin(fifth) / (2 * np.sin(2 * fifth) * (1 + np.cos(fifth))),
        "heart": 180 * np.pi / (32 * np.ptp(heart_y)),
        "cross": 5 / 9,
        "ring": np.pi / 4 * (1 - 0.55**2),
    }
    for shape in SHAPES:
        for pixels in (7, 33, 90):
            mask = shape_mask(shape, pixels)
            assert mask.shape == (pixels, pixels) and mask.min() >= 0 and mask.max() <= 1
            assert mask.mean() == pytest.approx(areas[shape], abs=3e-3), shape
            np.testing.assert_allclose(mask, mask[:, ::-1], atol=0.05, err_msg=shape)
        edges = [mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        assert all(edge.max() > 0.01 for edge in edges), f"{shape} fills its box"


def test_outlines_are_upright():
    rows = {shape: shape_mask(shape, 60).sum(1) for shape in SHAPES}
    assert (np.diff(rows["triangle"]) > 0).all()
    assert rows["heart"][:30].sum() > rows["heart"][30:].sum()
    star = shape_mask("star", 60) > 0.5
    assert star[2].sum() < 6 and star[2, 29:31].all(), "one point up"
    assert not star[-2, 25:35].any(), "two points down"


def test_objects_lie_inside_apart_and_in_their_relation():
    rng = np.random.default_rng(3)
    for _ in range(300):
        scene = sample_scene(rng, things=2)
        picture = render(scene, rng)
        axis = 1 if scene.relation in ("above", "below") else 0
        runs = _runs(_occupied(picture, axis))
        assert len(runs) == 2, scene
        (start, end), (start2, end2) = runs
        # A partly covered pixel at either side counts as occupied.
        assert (start2 - end) * PIXEL >= MIN_GAP - 2 * PIXEL
        assert start * PIXEL >= MARGIN - PIXEL and end2 * PIXEL <= 1 - MARGIN + PIXEL
        (low, high), *_ = _runs(_occupied(picture, 1 - axis))
        assert low > 0 and high < 128
        first = picture[:, : (end + start2) // 2] if axis == 0 else picture[: (end + start2) // 2]
        colour = scene.things[0 if scene.relation in ("above", "to the left of") else 1].colour
        assert (first == COLOURS[colour]).all(2).any()


def test_one_object_has_its_size_near_the_centre_in_exact_colours():
    rng = np.random.default_rng(4)
    for _ in range(200):
        scene = sample_scene(rng, things=1)
        picture = render(scene, rng)
        spans = [_runs(_occupied(picture, axis)) for axis in (0, 1)]
        start, end = spans[0][0][0], spans[0][-1][1]
        thing = scene.things[0]
        widths = WIDTHS[1].values() if thing.size is None else [WIDTHS[1][thing.size]]
        assert any(abs((end - start) * PIXEL - w) <= JITTER * w + 2 * PIXEL for w in widths)
        assert abs((start + end) / 2 * PIXEL - 0.5) <= 0.04 + PIXEL
        assert (picture == COLOURS[thing.colour]).all(2).any()
        named = [name for name, rgb in COLOURS.items() if tuple(picture[0, 0]) == rgb]
        assert named and named[0] != thing.colour
        assert scene.background in (None, *named)


def test_a_silent_caption_leaves_size_and_background_open():
    scene, rng = parse_caption("a red square"), np.random.default_rng(5)
    pictures = [render(scene, rng) for _ in range(80)]
    assert {tuple(p[0, 0]) for p in pictures} == set(COLOURS.values()) - {COLOURS["red"]}
    large = np.mean([_occupied(p, 0).mean() > 0.56 for p in pictures])
    assert 0.3 < large < 0.7


def test_a_dataset_is_the_same_in_any_slice():
    pictures, captions = dataset(7, 0, 12)
    part, part_captions = dataset(7, 5, 4)
    assert pictures.shape == (12, 128, 128, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(part, pictures[5:9])
    assert part_captions == captions[5:9]
    assert dataset(8, 0, 12)[1] != captions
    assert dataset(7, 0, 3, "unseen", 1, size=64)[0].shape == (3, 64, 64, 3)
