"""What the shipped models make of a picture: the figures of the README.

    python -m experiments.from_picture

writes docs/from_picture.png (image-to-image, inpainting, outpainting, depth, two prompts in two regions: what was
given on the left, what came of it on the right; first seeds, none left out) and docs/steps.png (the steps of the first
one). About a minute on 2 CPU cores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from experiments import _cli

WHITE = "on a white background"
WIDTH, HEIGHT = 192, 128  # of each picture of the sheet


def tile(image: Image.Image) -> Image.Image:
    """The picture in the middle of a tile of the sheet."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "#eeeeee")
    canvas.paste(image.convert("RGB"), ((WIDTH - image.width) // 2, (HEIGHT - image.height) // 2))
    return canvas


def marked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with stripes where the mask is white."""
    stripes = (np.add.outer(np.arange(image.height), np.arange(image.width)) // 4 % 2 * 255).astype(np.uint8)
    shown = np.where(np.asarray(mask)[..., None] > 127, stripes[..., None], np.asarray(image.convert("RGB")))
    return Image.fromarray(shown.astype(np.uint8))


def box(left: int, top: int, right: int, bottom: int) -> Image.Image:
    """A mask of the shapes model's size, white in a box."""
    mask = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


def standing_out() -> Image.Image:
    """A depth map: a cross in front of everything."""
    depth = Image.new("L", (128, 128), 0)
    drawn = ImageDraw.Draw(depth)
    drawn.rectangle((24, 50, 103, 77), fill=255)
    drawn.rectangle((50, 24, 77, 103), fill=255)
    return depth


def made(seed: int) -> tuple[list[tuple[Image.Image, str]], Any]:
    """The pictures with their captions, two for each task, and the steps of the first."""
    import sdjax

    sd, painter = sdjax.load(), sdjax.load("shapes-inpainting")
    shaper = sdjax.load("shapes-depth")
    circle = sd.generate(f"a large red circle {WHITE}", seed=seed).images[0]
    star = sd.generate(f"a large red star {WHITE}", image=circle, strength=0.7, seed=seed, show_steps=6)
    pair = f"a red circle to the left of a blue square {WHITE}"
    hole, (wider, new) = box(10, 10, 118, 118), sdjax.grow(circle, right=64, ramp=8)
    heart = painter.generate(f"a large blue heart {WHITE}", image=circle, mask=hole, seed=seed).images[0]
    grown = painter.generate(pair, image=wider, mask=new, seed=seed).images[0]
    depth, shapes = standing_out(), "a pink cross on a blue background"
    filled = shaper.generate(shapes, depth=depth, seed=seed).images[0]
    half = box(0, 0, 64, 128)
    two = [(f"a large blue heart {WHITE}", half)]
    heart_of_two = sd.generate(f"a large red heart {WHITE}", regions=two, seed=seed).images[0]
    return [
        (circle, "given"),
        (star.images[0], f"a large red star {WHITE}, strength 0.7"),
        (marked(circle, hole), "given, with its mask"),
        (heart, f"a large blue heart {WHITE}"),
        (marked(wider, new), "given, grown to the right"),
        (grown, pair),
        (depth, "given: what is near is light"),
        (filled, shapes),
        (half, "given: a region"),
        (heart_of_two, f"a large red heart {WHITE}; where the region is, a large blue one"),
    ], (sd, star.steps)


def main(values: Any) -> None:
    """Makes the pictures, writes both figures, prints their paths."""
    from sdjax.images import sheet
    from sdjax.sampling import strip

    tiles, (sd, steps) = made(values.seed)
    captions = [sheet.wrapped(caption, WIDTH) for _, caption in tiles]
    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.sheet([tile(image) for image, _ in tiles], captions, 4).save(folder / "from_picture.png", optimize=True)
    strip.strip(strip.develop(steps, sd.decode)).save(folder / "steps.png", optimize=True)
    print(folder / "from_picture.png", folder / "steps.png", sep="\n")


if __name__ == "__main__":
    flags.DEFINE_integer("seed", 0, "Seed of all pictures.", lower_bound=0)
    flags.DEFINE_string("out", "docs", "Folder for the two figures.")
    _cli.run(lambda: main(flags.FLAGS))
