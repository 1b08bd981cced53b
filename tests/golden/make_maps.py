"""Makes maps.npz: control maps by controlnet_aux's own code, of the inputs that this file makes.

    pip download --no-deps controlnet-aux==0.0.10 && unzip controlnet_aux-*.whl -d /tmp/aux
    python -m tests.golden.make_maps /tmp/aux

Needs torch and OpenCV; of the package only the files named below are run, for the rest wants networks. The colours that
it calls `ade_palette` are kept as they are there. Skeletons are of `poses`, in pixels, whose NaN are missing joints.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "maps.npz"
HEIGHT, WIDTH = 192, 256  # multiples of 64, so that at 192 the package resizes nothing
CANVAS = 512


def image() -> np.ndarray:
    """Squares of many colours on a slope, uint8 `H W 3`."""
    y, x, c = np.ogrid[:HEIGHT, :WIDTH, :3]
    return ((y // 24 * 7 + x // 16 * 13 + c * 29) * 37 % 200 + y // 4).astype(np.uint8)


def soft_edges() -> np.ndarray:
    """Ridges that swell and end, uint8 `H W`."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    crest = 1 - np.minimum(abs((x + y // 2) % 64 - 32), abs((y - x // 3) % 48 - 24)) / 12
    return (255 * np.clip(crest, 0, 1) * ((x + 2 * y) % 256 / 255)).astype(np.uint8)


def drawing() -> np.ndarray:
    """Those ridges in ink, dark on white, uint8 `H W 3`."""
    return np.repeat(255 - soft_edges()[..., None], 3, axis=2)


def depth() -> np.ndarray:
    """A slope with a bowl in it, float32 `h w`; whole numbers, alike on every machine."""
    y, x = np.ogrid[:48, :64]
    return (20 * x + 5 * y + np.maximum(0, 400 - (x - 30) ** 2 - (y - 20) ** 2)).astype(np.float32)


def poses() -> list[dict[str, np.ndarray]]:
    """Two people's joints on a canvas of 512 x 512, some missing."""
    people = []
    for person in range(2):
        one = {}
        for i, (part, count) in enumerate((("body", 18), ("left_hand", 21), ("right_hand", 21), ("face", 70))):
            k = np.arange(count)[:, None] * np.array([91, 187]) + (i + 4 * person) * np.array([533, 391])
            one[part] = (k % 480 + 16).astype(np.float64)
        one["body"][[4, 16 - person]] = np.nan
        people.append(one)
    return people


def main(folder: str) -> None:
    """Runs the package's code in `folder` and writes the maps."""
    util, pose, lineart, canny = (
        _module(folder, name) for name in ("util", "open_pose.util", "lineart_standard", "canny")
    )
    edges, lines = canny.CannyDetector(), lineart.LineartStandardDetector()
    made = {
        "palette": np.array(util.ade_palette(), np.uint8),
        "resized": util.resize_image(image(), 64),
        "enlarged": util.resize_image(image()[:40, :50], 128),
        "canny": edges(image(), 100, 200, HEIGHT, HEIGHT, "np")[..., 0],
        "canny_320": edges(image(), 100, 200, 320, 320, "np")[..., 0],
        "lineart_standard": lines(drawing(), detect_resolution=HEIGHT, output_type="np")[..., 0],
        "crests": util.nms(soft_edges(), 127, 3.0),
        "openpose": _skeletons(pose),
    }
    np.savez_compressed(PATH, **made)


def _module(folder: str, name: str) -> Any:
    """One file of the package, whose packages are entered without what their __init__ imports."""
    for package in ("controlnet_aux", "controlnet_aux.open_pose"):
        if package not in sys.modules:
            entered = ModuleType(package)
            entered.__path__ = [str(Path(folder, *package.split(".")))]
            sys.modules[package] = entered
    body: Any = ModuleType("controlnet_aux.open_pose.body")
    body.Keypoint = body.BodyResult = SimpleNamespace
    sys.modules[body.__name__] = body
    return importlib.import_module(f"controlnet_aux.{name}")


def _skeletons(pose: Any) -> np.ndarray:
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    for person in poses():
        body, left, right, face = (
            [None if np.isnan(x) else SimpleNamespace(x=x / CANVAS, y=y / CANVAS) for x, y in part]
            for part in person.values()
        )
        canvas = pose.draw_bodypose(canvas, body)
        canvas = pose.draw_facepose(pose.draw_handpose(pose.draw_handpose(canvas, left), right), face)
    return canvas


if __name__ == "__main__":
    main(sys.argv[1])
