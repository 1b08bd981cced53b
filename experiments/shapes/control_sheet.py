"""The picture of docs/control.md: what each net of the shapes model looks at, and what comes of it at three strengths.

    python -m experiments.shapes.control_sheet --out=docs/control.png

Four rows: edges; depth; both at once; a picture that is shown, without any text. One prompt and one seed a row, which
are not chosen among several. Half a minute on 2 cores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from experiments.shapes.world import render, sample_scene

FLAGS = flags.FLAGS
STRENGTHS = (0.0, 0.5, 1.0)
NAMES = {"edges": "edges", "depth": "depth", "image_prompt": "shapes"}


def rows() -> list[tuple[str, list[Image.Image], dict[str, Any], str]]:
    """(prompt, what is looked at, the arguments at strength 1, what the row is called)."""
    import sdjax
    from experiments.shapes import depth
    from sdjax.images.maps.edges import canny

    nets = {name: sdjax.load_controlnet(FLAGS[name].value or NAMES[name]) for name in ("edges", "depth")}
    ip = sdjax.load_image_prompt(FLAGS.image_prompt or NAMES["image_prompt"])
    scene = sample_scene(np.random.default_rng(7), things=2)
    shown = sample_scene(np.random.default_rng(11), things=1)
    picture, other = (Image.fromarray(render(one, np.random.default_rng(1))) for one in (scene, shown))
    case = next(depth.cases(5, 0, 1, things=2, overlapping=0.0))
    near = Image.fromarray(np.uint8(255 * case.depth / case.depth.max())).convert("RGB")
    drawn = canny(picture)
    outline = canny(Image.fromarray(case.picture))
    return [
        (str(scene), [drawn], {"control": [(nets["edges"], drawn)]}, "edges"),
        (str(case.scene), [near], {"control": [(nets["depth"], near)]}, "depth"),
        (str(case.scene), [outline], {"control": [(nets["edges"], outline), (nets["depth"], near)]}, "edges and depth"),
        ("", [other], {"image_prompt": [(ip, other)]}, "a picture, no text"),
    ]


def main() -> None:
    """Writes the sheet."""
    import sdjax
    from sdjax.images.sheet import sheet, wrapped

    sd = sdjax.load("shapes")
    pictures, captions = [], []
    for prompt, looked, given, name in rows():
        pictures += looked
        captions += [name]
        for strength in STRENGTHS:
            own: dict[str, Any] = {
                key: [(net, image, strength) for net, image in pairs] for key, pairs in given.items()
            }
            pictures.append(sd.generate(prompt, **own, steps=20, seed=3, progress=False)[0])
            captions.append(wrapped(f"{strength:g}: {prompt}" if strength == 0 else f"{strength:g}", 128))
    sheet(pictures, captions, 1 + len(STRENGTHS)).save(FLAGS.out, optimize=True)
    print(Path(FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("out", "docs/control.png", "Where it is written.")
    for name in NAMES:
        flags.DEFINE_string(name, None, "In place of the net that comes with sdjax, a folder or a file.")
    _cli.run(main)
