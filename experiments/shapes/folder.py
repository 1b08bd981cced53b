"""A folder of pictures with captions, as people have them, from the shapes world: something to train on.

    python -m experiments.shapes.folder --name=hexagon --out=runs/hexagon_pictures      # the twenty of a new thing
    python -m experiments.shapes.folder --count=400 --out=runs/old_pictures             # what the model knows
    python -m experiments.shapes.folder --count=4000 --edges=runs/edge_maps --out=runs/pictures

Each picture is a PNG, its caption a .txt of the same name; --edges writes a map of each into a folder of its own.
"""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from experiments.shapes import edges, lessons, world

FLAGS = flags.FLAGS


def pictures() -> tuple[list[np.ndarray], list[str]]:
    """uint8 `H W 3` each, and their captions."""
    if FLAGS.name:
        shown = lessons.twenty(FLAGS.name, FLAGS.seed)
        return [picture for _, picture in shown], [scene.caption() for scene, _ in shown]
    made, captions = world.dataset(FLAGS.seed, 0, FLAGS.count)
    return list(made), captions


def write(folder: Path, number: int, picture: np.ndarray, caption: str | None = None) -> None:
    """One picture, and its caption where it has one."""
    Image.fromarray(picture).save(folder / f"{number:05d}.png")
    if caption is not None:
        (folder / f"{number:05d}.txt").write_text(caption + "\n")


def main() -> None:
    out = Path(FLAGS.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out={out}: there is something in it; choose another folder")
    maps = Path(FLAGS.edges) if FLAGS.edges else None
    for folder in filter(None, (out, maps)):
        folder.mkdir(parents=True, exist_ok=True)
    made, captions = pictures()
    for number, (picture, caption) in enumerate(zip(made, captions, strict=True)):
        write(out, number, picture, caption)
        if maps is not None:
            write(maps, number, (edges.as_map(edges.lines(picture)) * 255).astype(np.uint8))
    print(f"{len(made)} pictures in {out}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The new folder.", required=True)
    flags.DEFINE_string("name", None, "A new outline or colour, as hexagon or lime: the twenty pictures of it.")
    flags.DEFINE_integer("count", 400, "Without a name: so many pictures of what the model knows.", lower_bound=1)
    flags.DEFINE_string("edges", None, "Folder for a map of each picture's edges.")
    flags.DEFINE_integer("seed", 1000, "Of the pictures.", lower_bound=0)
    _cli.run(main)
