"""Data of the nets that steer the shapes model: pictures, and what the nets look at, encoded once.

    python -m experiments.shapes.encode_control --count=8000 --out=runs/control_data

Of two objects, a third overlap. A file of SHARD pictures holds their latents, their captions' ids, their edges as bits,
their depth (0 the ground, 1 the far object, 2 the near one) and themselves at SMALL pixels, for the image prompt.
Started again, it goes on with the first file that is missing. Five minutes on 2 cores.
"""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from experiments.shapes import depth, edges, models
from experiments.shapes.batches import arrays, write_arrays
from experiments.shapes.encode_pictures import TOGETHER, Encode, shapes_encoder
from sdjax.images.pixels import from_uint8
from sdjax.text.tokens import Tokenizer

FLAGS = flags.FLAGS

SEED = 23
"""Of the pictures learnt from; `score_control` draws from others."""
OVERLAPPING = 1 / 3
"""Part of the pictures of two objects in which they overlap."""
SMALL = 64
"""Pixels of the picture that the image prompt's encoder sees."""
SHARD = 1024
NAMES = ("latents", "ids", "edges", "depth", "small")


def smaller(picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [s, s, 3] at SMALL pixels, as CLIP's processor resizes one (bicubic)."""
    return np.asarray(Image.fromarray(picture).resize((SMALL, SMALL), Image.Resampling.BICUBIC))


def encoded(encode: Encode, tokenizer: Tokenizer, start: int, count: int) -> dict[str, np.ndarray]:
    """The arrays of some pictures, by NAMES, each [count, ..]."""
    cases = list(depth.cases(SEED, start, count, overlapping=OVERLAPPING))
    pictures = np.stack([case.picture for case in cases])
    groups = [pictures[first : first + TOGETHER] for first in range(0, count, TOGETHER)]
    return {
        "latents": np.concatenate([encode(from_uint8(group)) for group in groups]),
        "ids": tokenizer.tokens([case.scene.caption() for case in cases]),
        "edges": np.packbits([edges.lines(picture) for picture in pictures], axis=-1),
        "depth": np.array([case.depth for case in cases], np.uint8),
        "small": np.stack([smaller(picture) for picture in pictures]),
    }


def data(folder: Path) -> dict[str, np.ndarray]:
    """All that was written to a folder, by NAMES. Raises ValueError where it holds nothing, or damaged files."""
    paths = sorted(folder.glob("pictures*.npz"))
    if not paths:
        raise ValueError(f"--data={folder}: no pictures there; run experiments.shapes.encode_control first")
    files = [arrays(path, NAMES) for path in paths]
    return {name: np.concatenate([file[name] for file in files]) for name in NAMES}


def main() -> None:
    out, encode, tokenizer = Path(FLAGS.out), shapes_encoder(), models.tokenizer()
    for start in range(0, FLAGS.count, SHARD):
        path = out / f"pictures{start // SHARD:02}.npz"
        if not path.exists():
            write_arrays(path, encoded(encode, tokenizer, start, min(SHARD, FLAGS.count - start)))
            print(path, flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/control_data", "Folder for the data.")
    flags.DEFINE_integer("count", 8000, "Pictures.", lower_bound=1)
    _cli.run(main)
