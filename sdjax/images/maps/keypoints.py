"""Where people's joints are, from JSON as OpenPose and pose editors write it, or from an array.

    {"people": [{"pose_keypoints_2d": [x, y, confidence, ...], "hand_left_keypoints_2d": ..., "hand_right_keypoints_2d",
                 "face_keypoints_2d"}], "canvas_width": 512, "canvas_height": 768}

A body has OpenPose's 18 joints of COCO or its BODY_25, whose mid hip and feet are left out; a hand has 21, a face 70 or
68. A list of one such object is that object (sd-webui-openpose-editor). An array is [people, 18 or 25, 2 or 3], bodies
alone. OpenPose itself does not say its canvas; then `size` has to.

* Numbers that are none above 2 are shares of the canvas, else pixels of it.
* A joint is missing where its confidence is 0, a number is null or NaN, or both are 0 or less, which is how exporters
  mark one that was not found (0, 0 or -1, -1).
* A joint outside of the canvas is refused, for mostly the size is the wrong one; with `clip` a limb may run out of the
  picture, to as far outside as the canvas is long.

Sources: OpenPose's doc/02_output.md; W's `decode_json_as_poses`, which drops joints of a confidence below 1 besides.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.core.numbers import is_number
from sdjax.core.short import fields, short
from sdjax.images.maps.pictures import check_size
from sdjax.weights.files import read_text

JOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye",
    "right ear", "left ear",
)  # fmt: skip
BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)  # of its joints, the 18 in their order
BODY, LEFT, RIGHT, FACE = "pose_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d"
COUNTS = {BODY: (18, 25), LEFT: (21,), RIGHT: (21,), FACE: (70, 68)}
PARTS = {LEFT: "left hand", RIGHT: "right hand", FACE: "face"}
LARGEST = 1e9  # pixels; what is far outside is told as such
SHARES = 2.0  # up to which all numbers are shares of the canvas


@dataclass(frozen=True)
class Person:
    """One person's joints in pixels, (x, y), NaN where missing: body `18 2`, hands `21 2`, face `70 2` or `68 2`."""

    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    face: np.ndarray

    __repr__ = fields


@dataclass(frozen=True)
class Poses:
    """People on a canvas of so many pixels."""

    people: tuple[Person, ...]
    height: int
    width: int

    __repr__ = fields


def read_poses(value: Any, size: tuple[int, int] | None = None, clip: bool = False) -> Poses:
    """The people of a JSON file (its path), of what such a file holds, or of an array.

    size: (height, width) of the canvas to draw on; where the file says its own, the people are scaled to it.
    clip: joints outside of the canvas are let pass.

    Raises ValueError, and CheckpointError, which is one, for a file that cannot be read.
    """
    if isinstance(value, str | os.PathLike):
        where, value = os.fspath(value), _parsed(value)
    else:
        where = "keypoints"
    people, own = _people(value, where)
    canvas = check_size(size) if size is not None else own
    if canvas is None:
        raise ValueError(f"{where} does not say how large its canvas is; give size=(height, width)")
    people = [_scaled(one, _factor(people, own or canvas, canvas)) for one in people]
    _check_inside(people, canvas, where, clip)
    return Poses(tuple(Person(*(one[key] for key in COUNTS)) for one in people), *canvas)


def _parsed(path: str | os.PathLike[str]) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON ({error}); export the pose again") from None


def _people(value: Any, where: str) -> tuple[list[dict[str, np.ndarray]], tuple[int, int] | None]:
    """Everybody's parts, `joints 2` by key, and (height, width) of the canvas where it is said."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        if len(value) > 1:
            raise ValueError(f"{where} holds the poses of {len(value)} pictures; give one of them")
        value = value[0]
    if not isinstance(value, Mapping):
        return [_parts({BODY: body}, where) for body in _bodies(value, where)], None
    people = value.get("people")
    if not isinstance(people, list) or not people or not all(isinstance(one, Mapping) for one in people):
        raise ValueError(f'{where} has no people: {{"people": [{{"{BODY}": [x, y, confidence, ...]}}]}} is expected')
    sides = [value.get(f"canvas_{side}") for side in ("height", "width")]
    own = check_size(sides, f"{where}: the canvas") if any(side is not None for side in sides) else None
    return [_parts(one, f"{where}: person {i + 1}") for i, one in enumerate(people)], own


def _bodies(value: Any, where: str) -> list[np.ndarray]:
    """An array of bodies, one by one."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or not len(found) or found.shape[1] not in COUNTS[BODY] or found.shape[2] not in (2, 3):
        raise ValueError(
            f"{where} must be a JSON file's path, what it holds, or an array [people, 18 or 25, 2 or 3], not "
            f"{short(value)}"
        )
    return list(found)


def _parts(person: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """A person's parts; one that is not there is all NaN."""
    made = {}
    for key, counts in COUNTS.items():
        found = person.get(key)
        absent = found is None or (isinstance(found, list) and not found)
        made[key] = np.full((counts[0], 2), np.nan) if absent else _located(_rows(found, f"{where}'s {key}", counts))
    if len(made[BODY]) == 25:
        made[BODY] = made[BODY][list(BODY_25)]
    return made


def _rows(found: Any, where: str, counts: Sequence[int]) -> np.ndarray:
    """`joints 2` or `joints 3`, float64. Raises ValueError."""
    if isinstance(found, np.ndarray):
        return found
    flat = isinstance(found, list) and all(one is None or _usable(one) for one in found)
    if not flat or len(found) not in [3 * count for count in counts]:
        wanted = " or ".join(f"{3 * count} ({count} joints)" for count in counts)
        raise ValueError(f"{where} must be a list of {wanted} numbers x, y, confidence, not {short(found)}")
    return np.array([np.nan if one is None else float(one) for one in found]).reshape(-1, 3)


def _usable(number: Any) -> bool:
    return is_number(number) and not abs(number) > LARGEST  # NaN is usable: a joint that is missing


def _located(rows: np.ndarray) -> np.ndarray:
    """`joints 2`, NaN where one is missing."""
    missing = np.isnan(rows).any(axis=1) | (rows[:, :2] <= 0).all(axis=1)
    if rows.shape[1] == 3:
        missing |= rows[:, 2] <= 0
    return np.where(missing[:, None], np.nan, rows[:, :2])


def _factor(people: list[dict[str, np.ndarray]], own: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """What x and y are multiplied by, to be pixels of the canvas."""
    numbers = np.concatenate([part.ravel() for one in people for part in one.values()])
    shares = not (np.abs(numbers) > SHARES).any()  # NaN is above nothing
    return np.array([side if shares else side / had for side, had in zip(canvas, own, strict=True)])[::-1]


def _scaled(person: dict[str, np.ndarray], factor: np.ndarray) -> dict[str, np.ndarray]:
    return {key: part * factor for key, part in person.items()}


def _check_inside(people: list[dict[str, np.ndarray]], canvas: tuple[int, int], where: str, clip: bool) -> None:
    """Raises ValueError for a joint outside of the canvas, and where there is none at all."""
    height, width = canvas
    far = np.array([width, height]) if clip else np.zeros(2)
    for i, one in enumerate(people):
        for key, part in one.items():
            outside = ((part < -far) | (part > far + (width, height))).any(axis=1)
            if outside.any():
                joint = int(outside.argmax())
                what = JOINTS[joint] if key == BODY else f"{PARTS[key]}'s point {joint}"
                remedy = "nor near it" if clip else "clip=True cuts what runs out of the picture"
                raise ValueError(
                    f"{where}: person {i + 1}'s {what} is at ({part[joint, 0]:g}, {part[joint, 1]:g}), not on the "
                    f"canvas of {width} x {height}; {remedy}"
                )
    if all(np.isnan(part).all() for one in people for part in one.values()):
        raise ValueError(f"{where} has no joint that was found, and nothing to draw")
