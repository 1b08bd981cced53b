"""OpenPose's skeleton, drawn as the nets know it: coloured limbs and joints on black.

    limb j of 17   a filled ellipse between two joints: its middle theirs, its half axes length / 2 and 4 pixels, c_j
    joint i of 18  a filled circle of radius 4, c_i
    hand           20 lines of 2 pixels, hue e / 20, and 21 circles of radius 4 in (0, 0, 255)
    face           circles of radius 3, white

"webui", X and W: all limbs in 0.6 c_j without what is after the point, then the joints in full colour over them, person
by person, each with hands and face. "original", CN: what the v1.0 net was trained on: joints first, then limb after
limb as 0.4 of what is there and 0.6 c_j; bodies only. A limb with a missing joint is left out.

Colours are red, green, blue; with blue first, as OpenCV writes files, they are other joints'. Widths are pixels,
whatever the canvas: the nets saw them at 512 on the shorter side. Sources: X `open_pose/util.py`, CN
`annotator/openpose`.
"""

import colorsys
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core.errors import unknown
from sdjax.images.maps.keypoints import Person, Poses, read_poses
from sdjax.images.maps.pictures import opencv, picture

COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
# Pairs of joints, counted from 0: both shoulders, both arms, both legs, neck to nose, both sides of the head.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
FINGERS = tuple((0 if k == 0 else 4 * finger + k, 4 * finger + k + 1) for finger in range(5) for k in range(4))
WIDE, SHARE = 4, 0.6  # a limb's half width and a joint's radius in pixels; how much of its colour a limb has
LINE, POINT, DOT = 2, (0, 0, 255), 3  # of hands: a line's width, a point's colour; of faces: the radius

Style = Callable[[np.ndarray, Poses, ModuleType], np.ndarray]


def openpose(
    keypoints: Any, size: tuple[int, int] | None = None, style: str = "webui", clip: bool = False
) -> Image.Image:
    """A skeleton from its joints.

    keypoints: the path of a JSON file, what it holds, or an array; see `keypoints`, which says what is read as missing.
    size: (height, width) of the picture; by default the file's canvas. style: "webui" (nets of v1.1, XL, T2I) or
    "original" (v1.0). clip: limbs may run out of the picture; else a joint outside of it is an error.

    Raises ValueError.
    """
    if style not in STYLES:
        raise ValueError(unknown(f"style={style!r} is unknown", style, STYLES))
    poses, cv2 = read_poses(keypoints, size, clip), opencv("openpose")
    return picture(STYLES[style](np.zeros((poses.height, poses.width, 3), np.uint8), poses, cv2))


def _webui(canvas: np.ndarray, poses: Poses, cv2: ModuleType) -> np.ndarray:
    for person in poses.people:
        for pair, colour in zip(LIMBS, COLOURS, strict=False):  # the last colour is a joint's alone
            if (shape := _limb(person, pair, cv2)) is not None:
                cv2.fillConvexPoly(canvas, shape, [int(SHARE * one) for one in colour])
        _circles(canvas, person.body, WIDE, COLOURS, cv2)
        for hand in (person.left_hand, person.right_hand):
            _draw_hand(canvas, hand, cv2)
        _circles(canvas, person.face, DOT, [(255, 255, 255)] * len(person.face), cv2)
    return canvas


def _original(canvas: np.ndarray, poses: Poses, cv2: ModuleType) -> np.ndarray:
    for joint, colour in enumerate(COLOURS):
        for person in poses.people:
            _circles(canvas, person.body[joint : joint + 1], WIDE, [colour], cv2)
    for pair, colour in zip(LIMBS, COLOURS, strict=False):
        for person in poses.people:
            if (shape := _limb(person, pair, cv2)) is not None:
                over = cv2.fillConvexPoly(canvas.copy(), shape, colour)
                canvas = cv2.addWeighted(canvas, 1 - SHARE, over, SHARE, 0)
    return canvas


def _limb(person: Person, pair: tuple[int, int], cv2: ModuleType) -> np.ndarray | None:
    """The outline of a limb, None where a joint is missing."""
    (x0, y0), (x1, y1) = (person.body[joint] for joint in pair)
    if any(map(math.isnan, (x0, x1))):
        return None
    middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    return cv2.ellipse2Poly(middle, (int(math.hypot(x0 - x1, y0 - y1) / 2), WIDE), int(angle), 0, 360, 1)


def _draw_hand(canvas: np.ndarray, hand: np.ndarray, cv2: ModuleType) -> None:
    for number, pair in enumerate(FINGERS):
        ends = hand[list(pair)]
        if not np.isnan(ends).any():
            hue = [round(255 * one) for one in colorsys.hsv_to_rgb(number / len(FINGERS), 1, 1)]
            cv2.line(canvas, _pixel(ends[0]), _pixel(ends[1]), hue, LINE)
    _circles(canvas, hand, WIDE, [POINT] * len(hand), cv2)


def _circles(canvas: np.ndarray, points: np.ndarray, radius: int, colours: Any, cv2: ModuleType) -> None:
    for point, colour in zip(points, colours, strict=True):
        if not np.isnan(point).any():
            cv2.circle(canvas, _pixel(point), radius, colour, -1)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return int(point[0]), int(point[1])


STYLES: dict[str, Style] = {"webui": _webui, "original": _original}
