"""A folder of pictures with captions, as people have them, from the shapes world: something to train on.

    python -m experiments.shapes.folder --name=hexagon --out=runs/hexagons --known=runs/known
    python -m experiments.shapes.folder --count=4000 --out=runs/pictures --edges=runs/edge_maps

The first writes the twenty of a new thing and, into a folder of their own, 400 of what the model knows. Each picture is
a PNG, its caption a .txt of the same name; --edges writes a map of each into a folder of its own.
"""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from experiments.shapes import edges, lessons, world

FLAGS = flags.FLAGS


def known() -> tuple[list[np.ndarray], list[str]]:
    """Pictures uint8 `H W 3` of what the model knows, and their captions."""
    made, captions = world.dataset(FLAGS.known_seed, 0, FLAGS.count)
    return list(made), captions


def new() -> tuple[list[np.ndarray], list[str]]:
    """The twenty pictures of a new thing, and their captions."""
    shown = lessons.twenty(FLAGS.name, FLAGS.seed)
    return [picture for _, picture in shown], [scene.caption() for scene, _ in shown]


def write(folder: Path, pictures: list[np.ndarray], captions: list[str] | None) -> None:
    """Pictures in a new folder, each with its caption where there are any. Raises ValueError."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: there is something in it; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:05d}.png")
        if captions is not None:
            (folder / f"{number:05d}.txt").write_text(captions[number] + "\n")
    print(f"{len(pictures)} pictures in {folder}", flush=True)


def main() -> None:
    pictures, captions = new() if FLAGS.name else known()
    write(Path(FLAGS.out), pictures, captions)
    if FLAGS.edges:
        maps = [(edges.as_map(edges.lines(picture)) * 255).astype(np.uint8) for picture in pictures]
        write(Path(FLAGS.edges), maps, None)
    if FLAGS.known:
        write(Path(FLAGS.known), *known())


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The new folder.", required=True)
    flags.DEFINE_string("name", None, "A new outline or colour, as hexagon or lime: the twenty pictures of it.")
    flags.DEFINE_string("known", None, "Folder for pictures of what the model knows.")
    flags.DEFINE_integer("count", 400, "So many of these.", lower_bound=1)
    flags.DEFINE_string("edges", None, "Folder for a map of the edges of each picture in --out.")
    flags.DEFINE_integer("seed", 0, "Of the new thing's pictures.", lower_bound=0)
    flags.DEFINE_integer("known_seed", 1000, "Of those the model knows.", lower_bound=0)
    _cli.run(main)
