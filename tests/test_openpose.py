"""Skeletons: drawn as controlnet_aux draws them, pixel by pixel, from every file that editors write."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.images.maps import keypoints, openpose
from tests.golden import make_maps

GOLDEN = np.load(make_maps.PATH)["openpose"]
CANVAS = make_maps.CANVAS
RNG = np.random.default_rng(0)
# A body with its arms and legs out, so that limbs cross nowhere but in joints; 18 joints in a canvas of 512 x 512.
BODY = np.array([
    (256, 80), (256, 150), (180, 150), (120, 210), (60, 270), (332, 150), (392, 210), (452, 270),
    (216, 300), (200, 390), (184, 480), (296, 300), (312, 390), (328, 480), (236, 60), (276, 60), (206, 70), (306, 70),
], np.float64)  # fmt: skip


def flat(points: np.ndarray, sure: float = 1.0) -> list[float]:
    """[x, y, c, ...] as JSON has it; missing ones are three zeros."""
    return [float(one) for x, y in points for one in ((x, y, sure) if not np.isnan(x) else (0, 0, 0))]


def file_of(people: list[dict[str, np.ndarray]], **more) -> dict:
    names = {"body": keypoints.BODY, "left_hand": keypoints.LEFT, "right_hand": keypoints.RIGHT, "face": keypoints.FACE}
    return {"people": [{names[part]: flat(points) for part, points in one.items()} for one in people]} | more


def drawn(value, **options) -> np.ndarray:
    return np.asarray(openpose.openpose(value, **options))


FILE = file_of(make_maps.poses(), canvas_width=CANVAS, canvas_height=CANVAS)
ALONE = file_of([{"body": BODY}], canvas_width=512, canvas_height=512)


# What is drawn -----------


def test_as_controlnet_aux_draws_it():
    """Two people with hands and faces, some joints missing: not one pixel differs."""
    assert (drawn(FILE) == GOLDEN).all() and (GOLDEN > 0).mean() > 0.1


def test_colours_and_widths():
    """Joints in full colour at their places, limbs at 0.6 in their middles, four pixels to both sides."""
    canvas = drawn(ALONE)
    for (x, y), colour in zip(BODY.astype(int), openpose.COLOURS, strict=True):
        assert {tuple(canvas[y + dy, x + dx]) for dy, dx in ((0, 0), (4, 0), (0, -4))} == {colour}
    for limb, (one, other) in enumerate(openpose.LIMBS):
        x, y = ((BODY[one] + BODY[other]) / 2).astype(int)
        assert tuple(canvas[y, x]) == tuple(int(0.6 * one) for one in openpose.COLOURS[limb]), limb
    shoulder = canvas[:, 218]  # across the limb from neck to right shoulder, which lies level at y = 150
    assert np.flatnonzero(shoulder[120:180].any(axis=1)).tolist() == list(range(26, 35))


def test_left_is_not_right_and_red_is_not_blue():
    """The right arm is orange and yellow, the left green; a person who turns round keeps their colours."""
    canvas, turned = drawn(ALONE), drawn(np.abs(BODY - (512, 0)), size=(512, 512))
    for image, right, left in ((canvas, 150, 362), (turned, 362, 150)):
        assert tuple(image[180, right]) == (153, 102, 0) and tuple(image[180, left]) == (102, 153, 0)  # 0.6 of c2, c4


def test_original_style():
    """Joints first, then limb after limb mixed over them: 0.4 of what was there, 0.6 of its colour."""
    canvas, over = drawn(ALONE, style="original").astype(int), 0.6 * np.array(openpose.COLOURS)
    for limb, (one, other) in enumerate(openpose.LIMBS):
        x, y = ((BODY[one] + BODY[other]) / 2).astype(int)
        assert abs(canvas[y, x] - over[limb]).max() <= 0.5
    x, y = BODY[4].astype(int)  # the right wrist, under the end of limb 3 alone
    end = 0.4 * np.array(openpose.COLOURS[4]) + over[3]
    assert abs(canvas[y, x - 4] - openpose.COLOURS[4]).max() == 0 and abs(canvas[y - 1, x + 2] - end).max() <= 1
    hands = drawn(FILE, style="original")
    assert (hands == drawn(file_of([{"body": one["body"]} for one in make_maps.poses()], canvas_width=512,
                                   canvas_height=512), style="original")).all()  # fmt: skip


def test_missing_joints_leave_their_limbs_out():
    whole = drawn(ALONE)
    for joint in range(18):
        body = BODY.copy()
        body[joint] = np.nan
        left = drawn({"people": [{keypoints.BODY: flat(body)}], "canvas_width": 512, "canvas_height": 512})
        x, y = BODY[joint].astype(int)
        assert not left[y, x].any() and (left[whole == 0] == 0).all()
        for limb in openpose.LIMBS:
            x, y = BODY[list(limb)].mean(axis=0).astype(int)
            assert left[y, x].any() == (joint not in limb)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_people_one_by_one(seed):
    """Any people are drawn; later ones lie over earlier ones, and each alone is part of the picture of all."""
    bodies = np.random.default_rng(seed).uniform(1, 100, (3, 18, 2))
    all_of_them, last = drawn(bodies, size=(101, 101)), drawn(bodies[2], size=(101, 101))
    assert (all_of_them[last > 0] == last[last > 0]).all()


# What is read -----------


def test_what_editors_write(tmp_path):
    path = tmp_path / "pose.json"
    path.write_text(json.dumps([ALONE]), "utf-8")
    shares = {"people": [{keypoints.BODY: flat(BODY / 512)}], "canvas_width": 512, "canvas_height": 512}
    nulls = ALONE["people"][0] | {keypoints.LEFT: None, keypoints.FACE: [], "pose_keypoints_3d": [1]}
    sure = {"people": [{keypoints.BODY: flat(BODY, 0.3)}], "canvas_width": 512, "canvas_height": 512}
    wide = np.concatenate([BODY, np.ones((18, 1))], axis=1)
    expected = drawn(ALONE)
    for value in (path, str(path), [ALONE], shares, ALONE | {"people": [nulls]}, sure):
        assert (drawn(value) == expected).all()
    for value in (
        BODY,
        BODY[None],
        BODY.tolist(),
        BODY / 512,
        wide,
        ALONE | {"canvas_width": None, "canvas_height": None},
    ):
        assert (drawn(value, size=(512, 512)) == expected).all()


def test_body_25_is_reduced():
    """Its mid hip (8) and feet (19 to 24) are left out, the rest is the same order but for that hip."""
    places = [i for i in range(19) if i != 8]
    body = np.full((25, 2), 7.0)
    body[places] = BODY
    assert (drawn(body, size=(512, 512)) == drawn(ALONE)).all()
    value = {"people": [{keypoints.BODY: flat(body)}], "canvas_width": 512, "canvas_height": 512}
    assert (drawn(value) == drawn(ALONE)).all()


@pytest.mark.parametrize("lost", [(0, 0, 0), (0, 0, 1), (-1, -1, 1), (90, 90, 0), (None, None, None), (90, None, 1)])
def test_ways_to_be_missing(lost):
    numbers = flat(BODY)
    numbers[12:15] = lost
    without = BODY.copy()
    without[4] = np.nan
    expected = drawn(without, size=(512, 512))
    assert (drawn(ALONE | {"people": [{keypoints.BODY: numbers}]}) == expected).all()


def test_another_size():
    """People are scaled, widths are not."""
    small = drawn(ALONE, size=(256, 256))
    assert (small == drawn(BODY / 2, size=(256, 256))).all() and small.shape == (256, 256, 3)
    stretched = drawn(ALONE, size=(256, 512))
    assert tuple(stretched[75, 256]) == openpose.COLOURS[1] and stretched.shape == (256, 512, 3)


def test_hands_and_faces_alone():
    hand = np.stack([np.linspace(50, 450, 21), np.full(21, 100.0)], axis=1)
    value = {"people": [{keypoints.RIGHT: flat(hand)}], "canvas_width": 512, "canvas_height": 512}
    canvas = drawn(value)
    assert (canvas[100, hand[:, 0].astype(int)] == (0, 0, 255)).all()
    assert tuple(canvas[100, 60]) == (204, 0, 255)  # all fingers begin at point 0: edge 16, hue 0.8, is the last there
    assert tuple(canvas[100, 440]) == (255, 0, 77)  # edge 19, hue 0.95
    for count in (68, 70):
        face = np.stack([np.linspace(50, 450, count), np.full(count, 300.0)], axis=1)
        canvas = drawn({"people": [{keypoints.FACE: flat(face)}], "canvas_width": 512, "canvas_height": 512})
        assert (canvas[300, face[:, 0].astype(int)] == 255).all() and (canvas[304] == 0).all()


def test_outside_of_the_canvas():
    body = BODY.copy()
    body[4] = (-30, 270)
    value = file_of([{"body": BODY}, {"body": body}], canvas_width=512, canvas_height=512)
    with pytest.raises(
        ValueError, match=r"person 2's right wrist is at \(-30, 270\), not on the canvas of 512 x 512; clip"
    ):
        drawn(value)
    clipped = drawn(value, clip=True)
    assert clipped[258, 0].any() and not drawn(ALONE)[258, 0].any()  # the forearm, where it leaves the picture
    body[4] = (-30, 5000)
    with pytest.raises(ValueError, match="right wrist is at .* nor near it"):
        drawn(file_of([{"body": body}], canvas_width=512, canvas_height=512), clip=True)


# Mistakes -----------

PERSON = {keypoints.BODY: flat(BODY)}
SIZED = {"canvas_width": 512, "canvas_height": 512}


@pytest.mark.parametrize(
    "value, options, message",
    [
        (file_of([{"body": BODY}]), {}, r"keypoints does not say how large its canvas is; give size=\(height, width\)"),
        (BODY, {}, "does not say how large its canvas is"),
        ({}, {}, "keypoints has no people"),
        ({"people": []} | SIZED, {}, "has no people"),
        ({"people": [3]} | SIZED, {}, "has no people"),
        ([ALONE, ALONE], {}, "holds the poses of 2 pictures; give one"),
        (file_of([{"body": np.full((18, 2), np.nan)}]) | SIZED, {}, "has no joint that was found"),
        ({"people": [{}]} | SIZED, {}, "has no joint that was found"),
        ({"people": [PERSON, {keypoints.BODY: flat(BODY)[:-1]}]} | SIZED, {}, r"person 2's pose_keypoints_2d must be a "
         r"list of 54 \(18 joints\) or 75 \(25 joints\) numbers x, y, confidence, not list of 53"),
        ({"people": [{keypoints.LEFT: [1, 2]}]} | SIZED, {}, r"hand_left_keypoints_2d must be a list of 63 \(21 "),
        ({"people": [{keypoints.BODY: "all"}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [{keypoints.BODY: 7}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [{keypoints.BODY: ["1"] * 54}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [{keypoints.BODY: [True] * 54}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [{keypoints.BODY: [10**400] * 54}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [{keypoints.BODY: [float("inf")] * 54}]} | SIZED, {}, "pose_keypoints_2d must be a list"),
        ({"people": [PERSON], "canvas_width": 10**9, "canvas_height": 10**9}, {}, "the canvas's height must be"),
        ({"people": [PERSON], "canvas_width": "512", "canvas_height": 512}, {}, "the canvas's width must be a whole"),
        ({"people": [PERSON], "canvas_width": 512}, {}, "the canvas's height must be a whole number.*not None"),
        ({"people": [PERSON], "canvas_width": 16384, "canvas_height": 16384}, {}, "16384 x 16384 pixels; at most"),
        (ALONE, {"size": (512, -1)}, "size's width must be"),
        (ALONE, {"size": "512"}, r"size must be \(height, width\)"),
        (ALONE, {"style": "web-ui"}, "style='web-ui' is unknown; nearest: 'webui'"),
        (BODY[:17], {"size": (512, 512)}, r"array \[people, 18 or 25, 2 or 3\], not float64\[17, 2\]"),
        (np.zeros((0, 18, 2)), {"size": (512, 512)}, r"array \[people, 18 or 25"),
        (None, {"size": (512, 512)}, r"array \[people, 18 or 25, 2 or 3\], not None"),
        ([["a"]], {"size": (512, 512)}, r"array \[people, 18 or 25"),
        (np.full((18, 2), 600.0), {"size": (512, 512)}, r"keypoints: person 1's nose is at \(600, 600\)"),
        ("nowhere.json", {}, "nowhere.json is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(value, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(value, **options)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("1" * 5000, "is not valid JSON"),
        ("3", r"must be a JSON file's path"),
        ("", "is not valid JSON"),
        (json.dumps({"people": [{keypoints.BODY: [5]}]}), "pose.json: person 1's pose_keypoints_2d must be"),
    ],
)
def test_files_that_are_broken(text, message, tmp_path):
    path = tmp_path / "pose.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        drawn(path, size=(64, 64))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(flat(BODY)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*keypoints.COUNTS, *SIZED, "people"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(
    st.fixed_dictionaries({"people": st.lists(ANYTHING, max_size=2)}, optional=dict.fromkeys(SIZED, ANYTHING))
    | ANYTHING
)
def test_any_json_is_a_pose_or_a_sentence(value):
    if isinstance(value, str):
        return  # a path
    try:
        poses = keypoints.read_poses(value, clip=True)
    except ValueError as error:
        assert str(error)
    else:
        assert poses.people and all(one.body.shape == (18, 2) for one in poses.people)


def test_a_pose_shows_what_it_is():
    poses = keypoints.read_poses(ALONE)
    assert "float64[18, 2]" in repr(poses.people[0]) and len(repr(poses)) < 500
