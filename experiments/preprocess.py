r"""Control maps from pictures: edges, scribbles, depth, poses ... as control networks were trained to see them.

    python -m experiments.preprocess --map=canny --image=photo.png --out=canny.png
    python -m experiments.preprocess --map=canny --image=a.png,b.png --low=50 --high=120 --out=maps
    python -m experiments.preprocess --map=openpose --keypoints=pose.json --out=pose.png
    python -m experiments.preprocess --map=inpaint --image=photo.png --mask=mask.png --out=inpaint.npy
    python -m experiments.preprocess --map=depth --image=photo.png --estimator=sd2-depth --out=depth.png

docs/maps.md shows all maps and says which nets look at them. Each is written whole or not at all, in the place of an
older one, as PNG; the map of inpainting holds -1, which no PNG does, and is a .npy of float32 `H W 3`. An --out without
such an ending is a folder, where a map has its picture's name. --estimator names a model whose depth estimator looks at
the pictures first (Stable Diffusion 2 depth has one); without it --image is a depth map already.

Run time: about 3 s for a picture, most of it to start.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

ESTIMATED = ("depth", "normal")


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_string(
        "map", None, "Which map: canny, scribble, depth ... (docs/maps.md has them all).", required=True
    )
    flags.DEFINE_list("image", None, "A picture, or several with commas between; of segmentation its labels.")
    flags.DEFINE_list("keypoints", None, "Of openpose: the joints, as the JSON of OpenPose or a pose editor.")
    flags.DEFINE_string("out", None, "A .png (of inpaint a .npy), or a folder.", required=True)
    flags.DEFINE_string("estimator", None, "Of depth and normal: a model that has a depth estimator.")
    flags.DEFINE_float("low", None, "Of canny and scribble: the gradient from where an edge goes on; 100.")
    flags.DEFINE_float("high", None, "Of canny and scribble: the gradient of an edge; 200.")
    flags.DEFINE_integer("detect_resolution", None, "Of edges and lines: the shorter side to look at; as it is.")
    flags.DEFINE_float("shortest", None, "Of lines: pixels that a segment must have; 16.")
    flags.DEFINE_float("threshold", None, "Of scribble_xdog: 1 (much is drawn) to 64 (little); 32.")
    flags.DEFINE_float("level", None, "Of threshold: what is above it is white; 127.")
    flags.DEFINE_string("by", None, "Of recolor: luminance or intensity.")
    flags.DEFINE_float("gamma", None, "Of recolor, and depth by zoe: above 1 is darker; 1.")
    flags.DEFINE_float("factor", None, "Of tile: so many times smaller; 1.")
    flags.DEFINE_float("sigma", None, "Of blur: the standard deviation in pixels; 9.")
    flags.DEFINE_integer("seed", None, "Of shuffle; 0.")
    flags.DEFINE_string("convention", None, "Of depth: midas (larger is nearer), zoe or leres (larger is farther).")
    flags.DEFINE_string("style", None, "Of normal: bae or midas; of openpose: webui or original.")
    flags.DEFINE_float("z", None, "Of normal: larger is flatter; 6.28.")
    flags.DEFINE_float("background", None, "Of normal by midas: the share of the range that is taken for flat; 0.1.")
    flags.DEFINE_list("size", None, "Of depth, normal and openpose: height,width in pixels.")
    flags.DEFINE_boolean("clip", None, "Of openpose: limbs may run out of the picture.")
    flags.DEFINE_string("mask", None, "Of inpaint: white where the picture is made anew.")


OPTIONS = (
    "low", "high", "detect_resolution", "shortest", "threshold", "level", "by", "gamma", "factor", "sigma", "seed",
    "convention", "style", "z", "background", "size", "clip", "mask",
)  # fmt: skip


def options(values: Any) -> dict[str, Any]:
    """The options that were given, by name. Raises ValueError for a size that is none."""
    given = {name: getattr(values, name) for name in OPTIONS if getattr(values, name) is not None}
    if "size" in given:
        given["size"] = tuple(_cli.number(one, int, "size") for one in given["size"])
    return given


def sources(values: Any) -> list[str]:
    """The files to look at. Raises ValueError."""
    wanted, other = ("keypoints", "image") if values.map == "openpose" else ("image", "keypoints")
    found = getattr(values, wanted)
    if getattr(values, other):
        raise ValueError(f"--{other} is not for {values.map}, which looks at --{wanted}")
    if not found or not all(found):
        raise ValueError(f"--{wanted} must be given: what {values.map} looks at")
    return found


def targets(files: list[str], out: str, ending: str) -> list[Path]:
    """Where each map goes. Raises ValueError where two would lie in one place, or one on its own picture."""
    named = Path(out)
    folder = len(files) > 1 or named.is_dir() or not named.suffix
    if not folder and named.suffix.lower() != ending:
        why = "holds -1, which no picture does: it" if ending == ".npy" else "would lose its lines as another:"
        raise ValueError(f"--out={out}: this map {why} is written as {ending}")
    if folder and named.suffix.lower() in (".png", ".npy") and not named.is_dir():
        raise ValueError(f"--out={out}: {len(files)} maps need a folder")
    paths = [named / f"{Path(one).stem}{ending}" for one in files] if folder else [named]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"--out={out}: several maps would be {path}; make them one after another")
        if path.exists() and any(Path(one).exists() and path.samefile(one) for one in files):
            raise ValueError(f"--out={out}: a map would lie on the picture {path}; choose another place")
    return paths


def estimates(files: list[str], estimator: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The depth that a model sees in each picture, and the picture's size as an option. Raises ValueError."""
    import sdjax
    from sdjax.images import read

    pictures = [read.read_image(one, "--image") for one in files]
    sd = sdjax.load(estimator)
    for one in pictures:
        yield sd.estimate_depth(one), {"size": (one.height, one.width)}


def encoded(made: Any) -> bytes:
    """The bytes of a map's file."""
    from PIL import Image

    from sdjax.images import pixels

    if isinstance(made, Image.Image):
        return pixels.encoded(made)
    import numpy as np

    file = io.BytesIO()
    np.save(file, made, allow_pickle=False)
    return file.getvalue()


def main(values: Any) -> None:
    """Makes all maps, writes them, prints their paths. `values` has a flag an attribute. Raises ValueError, OSError."""
    from sdjax.core import files as written
    from sdjax.images import maps

    given, ending = options(values), ".npy" if values.map == "inpaint" else ".png"
    maps.check(values.map, given)
    if values.estimator and values.map not in ESTIMATED:
        raise ValueError(f"--estimator is for {' and '.join(ESTIMATED)}, not for {values.map}")
    found = sources(values)
    paths = targets(found, values.out, ending)
    written.check_writable(paths[0].parent, "the maps")
    seen: Iterable[tuple[Any, dict[str, Any]]]
    seen = estimates(found, values.estimator) if values.estimator else ((one, {}) for one in found)
    made = [encoded(maps.make(values.map, one, **size | given)) for one, size in seen]
    for path, data in zip(paths, made, strict=True):
        print(written.write(data, path, "the maps"))


if __name__ == "__main__":
    _cli.run(lambda: main(flags.FLAGS), define_flags)
