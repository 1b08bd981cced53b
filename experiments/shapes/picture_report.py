"""How well the shipped models do what they are asked with a picture: scored from the pixels alone.

    python -m experiments.shapes.picture_report --count=300

Prints, with 95 % Wilson intervals:

- **inpainting**, with the 9-channel model and with the text-to-image model held to the picture outside the mask: an
  object is to become another, or an empty place to get one (`inpainting.cases`). Told the caption of the finished
  picture, or working on the region alone (`mask_crop`) and told what is to be there. Right is a finished picture
  that `score` accepts; outside the mask it must be the given one to the last bit;
- **image-to-image** at strength 0.6: a picture of one object, and the caption with another shape. Right is a picture
  that shows the new caption; the place is kept where the object's centre is within 0.1 of the width of where it was,
  and its width within a fifth of what it was;
- **depth**: the map of a picture with overlapping objects, and its caption (`depth.follows`).

About a second a picture on 2 cores.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

import sdjax
from experiments import _cli
from experiments.shapes import depth, inpainting, report, world
from experiments.shapes.objects import find_objects
from experiments.shapes.score import rate, score

FLAGS = flags.FLAGS

SEEDS = {"inpainting": 1_000_003, "image-to-image": 1_000_004, "depth": 1_000_005}
"""Of the cases: no training stage draws from them."""
STRENGTH = 0.6
PADDING = 2
"""Pixels around a hole that is worked on alone."""


def generated(
    sd: sdjax.StableDiffusion, prompts: Sequence[str], also: Mapping[str, Any], **pictures: Sequence[Any]
) -> np.ndarray:
    """One picture of each prompt, uint8 `b H W 3`; `also` is given for all, `pictures` hold a value for each."""
    given = {"steps": FLAGS.steps, "seed": FLAGS.seed, **also}
    return report.pictures(sd, prompts, FLAGS.batch, given, **pictures)


def say(name: str, right: Iterable[bool], more: str = "") -> None:
    """One line: how many of how many, with the interval."""
    listed = list(right)
    print(f"{name}: {rate(sum(listed), len(listed))} {more}", flush=True)


def show(name: str, *rows: Sequence[np.ndarray] | np.ndarray) -> None:
    """An unselected contact sheet: what was given above what was made."""
    if FLAGS.sheets:
        Path(FLAGS.sheets).mkdir(parents=True, exist_ok=True)
        pairs = np.stack([np.concatenate(column) for column in zip(*rows, strict=True)][:40])
        report.sheet(pairs, 10).save(Path(FLAGS.sheets) / f"{name}.png")


def inpaint(model: str, region: bool) -> None:
    """Holes painted by one model: told the finished picture, or working on the region alone and told what is there."""
    cases = list(inpainting.cases(SEEDS["inpainting"], 0, FLAGS.count))
    masks = [Image.fromarray(case.mask) for case in cases]
    pictures = [Image.fromarray(case.picture) for case in cases]
    prompts = [(case.inside if region else case.scene).caption() for case in cases]
    crop: dict[str, Any] = {"mask_crop": PADDING, "height": 128, "width": 128} if region else {}
    made = generated(sdjax.load(model), prompts, crop, image=pictures, mask=masks)
    verdicts = [score(picture, case.scene) for picture, case in zip(made, cases, strict=True)]
    errors = Counter(error for verdict in verdicts for error in verdict.errors)
    name = f"inpainting {'a region' if region else 'a picture'}, {model}"
    say(name, (verdict.ok for verdict in verdicts), str(dict(errors)))
    for things in (1, 2):
        chosen = [v.ok for v, case in zip(verdicts, cases, strict=True) if len(case.scene.things) == things]
        say(f"  {things} in the finished picture", chosen)
    for kind in inpainting.KINDS:
        say(f"  {kind}", (v.ok for v, case in zip(verdicts, cases, strict=True) if case.kind == kind))
    say("  the rest as it was", (not (m != c.picture)[~c.mask].any() for m, c in zip(made, cases, strict=True)))
    show(
        name.replace(",", "").replace(" ", "_"),
        [np.where(c.mask[..., None], 128, c.picture).astype(np.uint8) for c in cases],
        made,
    )


def change_shape() -> None:
    """Image-to-image: one object, another shape."""
    given, scenes = [], []
    for index in range(FLAGS.count):
        rng = np.random.default_rng([SEEDS["image-to-image"], index])
        scene = world.sample_scene(rng, things=1)
        thing, background = scene.things[0], scene.background
        new, (shown, places) = inpainting.another(rng, thing, "shape"), world.arrange(scene, rng)
        given.append(world.draw(scene.things, places, shown))
        scenes.append(world.Scene((new,), None, background or shown))
    pictures = [Image.fromarray(picture) for picture in given]
    strength = [FLAGS.strength] * FLAGS.count
    made = generated(sdjax.load(), [scene.caption() for scene in scenes], {}, image=pictures, strength=strength)
    right = [score(picture, scene).ok for picture, scene in zip(made, scenes, strict=True)]
    kept = [_place_kept(before, after) for before, after in zip(given, made, strict=True)]
    say(f"image-to-image at strength {FLAGS.strength}: the shape changed", right)
    say("  the place kept", kept)
    say("  both", (a and b for a, b in zip(right, kept, strict=True)))
    show("image_to_image", given, made)


def _place_kept(before: np.ndarray, after: np.ndarray) -> bool:
    (_, (old, *_)), (_, found) = find_objects(before), find_objects(after)
    if not found:
        return False
    new = found[0]
    return max(abs(new.x - old.x), abs(new.y - old.y)) <= 0.1 and abs(new.width - old.width) <= 0.2 * old.width


def by_depth() -> None:
    """Maps filled with colours."""
    cases = list(depth.cases(SEEDS["depth"], 0, FLAGS.count))
    maps = [Image.fromarray((case.depth / case.depth.max() * 255).round().astype(np.uint8)) for case in cases]
    made = generated(sdjax.load("shapes-depth"), [case.scene.caption() for case in cases], {}, depth=maps)
    errors = [depth.follows(picture, case) for picture, case in zip(made, cases, strict=True)]
    say("depth", (not e for e in errors), str(dict(Counter(kind for e in errors for kind in e))))
    for things in (1, 2):
        say(f"  {things} things", (not e for e, case in zip(errors, cases, strict=True) if len(case.order) == things))
    show("depth", [np.repeat(np.asarray(one)[..., None], 3, -1) for one in maps], made)


def main() -> None:
    parts: dict[str, Callable[[], None]] = {
        f"inpainting a {'region' if region else 'picture'}, {model}": partial(inpaint, model, region)
        for region in (False, True)
        for model in ("shapes-inpainting", "shapes")
    }
    parts |= {"image-to-image": change_shape, "depth": by_depth}
    for name, part in parts.items():
        if FLAGS.part in name:
            part()


if __name__ == "__main__":
    flags.DEFINE_integer("count", 300, "Cases of each kind.", lower_bound=1)
    flags.DEFINE_integer("batch", 50, "Pictures made at once.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Sampler steps.")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures.")
    flags.DEFINE_float("strength", STRENGTH, "Of image-to-image.")
    flags.DEFINE_string("part", "", "Only the parts whose name holds this.")
    flags.DEFINE_string("sheets", None, "Folder for contact sheets.")
    _cli.run(main)
