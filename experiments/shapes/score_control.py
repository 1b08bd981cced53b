"""How well what steers the shapes model is followed: maps of edges and depth, and pictures as prompts.

    python -m experiments.shapes.score_control --count=200
    python -m experiments.shapes.score_control --part=edges --edges=runs/edges/edges --count=60

Prints, with 95 % Wilson intervals, over cases that no training drew from:

- **edges**: the map of a scene of one object or two that are apart, and its caption. Obeyed is a map whose outlines the
  picture has (`edges`), right a picture that shows its caption (`score`); the same seeds without the net beside it, and
  with the caption left out;
- **depth**: the map of a scene whose objects overlap, and its caption (`depth.follows`);
- **edges and depth** at once, of such a scene, and edges alone;
- **image prompt**: a picture of one object and no text. Kept is its colour, its shape, both, and that of the ground.

About a second a picture on 2 cores. --sheets holds unselected contact sheets: what was given above what was made.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

import sdjax
from experiments import _cli
from experiments.shapes import depth, edges
from experiments.shapes.depth import Case
from experiments.shapes.objects import find_objects
from experiments.shapes.picture_report import say, show
from experiments.shapes.score import score
from sdjax.model.builtin import ASSETS

FLAGS = flags.FLAGS

SEEDS = {"edges": 1_000_006, "depth": 1_000_007, "image prompt": 1_000_008}
"""Of the cases: no training stage draws from them."""
FOLDER = ASSETS / "control"
NAMES = {"edges": "edges", "depth": "depth", "image prompt": "image_prompt.safetensors"}
"""What lies in it."""


def path_of(what: str) -> Path:
    """What is to be scored."""
    return Path(FLAGS[what.replace(" ", "_")].value or FOLDER / NAMES[what])


def cases_of(what: str, overlapping: float) -> list[Case]:
    """Scenes of one object or two."""
    return list(depth.cases(SEEDS[what], 0, FLAGS.count, overlapping=overlapping))


def maps_of(cases: Sequence[Case]) -> dict[str, list[Image.Image]]:
    """What each net looks at, as a user would hand it over."""
    grey = [np.uint8(255 * edges.lines(case.picture)) for case in cases]
    near = [np.uint8((case.depth / case.depth.max() * 255).round()) for case in cases]
    return {"edges": [Image.fromarray(one) for one in grey], "depth": [Image.fromarray(one) for one in near]}


class Painter:
    """The shapes model, and what can stand beside it."""

    def __init__(self) -> None:
        self.sd = sdjax.load()

    def paint(self, cases: Sequence[Case], nets: Mapping[str, float], prompts: Sequence[str]) -> np.ndarray:
        """Pictures of the prompts, nets by name with their strength beside: uint8 `b H W 3`."""
        opened = {name: sdjax.load_controlnet(path_of(name)) for name in nets}
        maps = maps_of(cases)

        def beside(chosen: Sequence[int]) -> dict[str, Any]:
            given = [sdjax.Control(net, [maps[name][i] for i in chosen], nets[name]) for name, net in opened.items()]
            return {"control": given or None}

        return self._made(prompts, beside)

    def imitate(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        """Pictures like the given, uint8 `b H W 3`."""
        adapter, images = sdjax.load_image_prompt(path_of("image prompt")), [Image.fromarray(one) for one in pictures]

        def beside(chosen: Sequence[int]) -> dict[str, Any]:
            return {"image_prompt": sdjax.ImagePrompt(adapter, [images[i] for i in chosen], FLAGS.strength)}

        return self._made(prompts, beside)

    def _made(self, prompts: Sequence[str], beside: Callable[[Sequence[int]], dict[str, Any]]) -> np.ndarray:
        """In batches of equal size, so that there is one compilation."""
        made, batch = [], min(FLAGS.batch, len(prompts))
        asked = {"steps": FLAGS.steps, "seed": FLAGS.seed, "guidance_scale": FLAGS.scale, "progress": False}
        for start in range(0, len(prompts), batch):
            chosen = [min(i, len(prompts) - 1) for i in range(start, start + batch)]
            out = self.sd.generate([prompts[i] for i in chosen], first_image=start, **asked, **beside(chosen))
            assert out.pixels is not None
            made.append(out.pixels[: len(prompts) - start])
        return np.concatenate(made)


def captions(cases: Sequence[Case]) -> list[str]:
    """The caption of each case."""
    return [case.scene.caption() for case in cases]


def rgb(maps: Sequence[Image.Image]) -> list[np.ndarray]:
    """Maps as pictures uint8 `H W 3`."""
    return [np.asarray(one.convert("RGB")) for one in maps]


def tell_edges(name: str, cases: Sequence[Case], made: np.ndarray) -> None:
    """One line for maps obeyed, one for captions shown, one for both."""
    found = [edges.overlaps(picture, edges.lines(case.picture)) for picture, case in zip(made, cases, strict=True)]
    obeyed = [edges.obeys(one) for one in found]
    shown = [score(picture, case.scene).ok for picture, case in zip(made, cases, strict=True)]
    say(f"{name}: the map obeyed", obeyed, f"median overlap {np.median([min(one, default=0) for one in found]):.3f}")
    say("  the caption right", shown)
    say("  both", (a and b for a, b in zip(obeyed, shown, strict=True)))


def by_edges(painter: Painter) -> None:
    """The edge net, with the caption, without it, at other strengths."""
    cases = cases_of("edges", 0.0)
    tell_edges("drawn by the world", cases, np.stack([case.picture for case in cases]))
    tell_edges("edges, no net", cases, painter.paint(cases, {}, captions(cases)))
    for strength in FLAGS.strengths:
        made = painter.paint(cases, {"edges": float(strength)}, captions(cases))
        tell_edges(f"edges at {strength}", cases, made)
        show(f"edges_{strength}", rgb(maps_of(cases)["edges"]), made)
        if float(strength) == 1:
            for things in (1, 2):
                chosen = [i for i, case in enumerate(cases) if len(case.order) == things]
                tell_edges(f"  of {things}", [cases[i] for i in chosen], made[chosen])
    made = painter.paint(cases, {"edges": 1.0}, [""] * len(cases))
    found = [edges.obeys(edges.overlaps(p, edges.lines(case.picture))) for p, case in zip(made, cases, strict=True)]
    say("edges without a caption: the map obeyed", found)


def by_depth(painter: Painter, nets: Mapping[str, float]) -> None:
    """Scenes whose objects overlap: one net or two."""
    cases = cases_of("depth", 1.0)
    made = painter.paint(cases, nets, captions(cases))
    name = " and ".join(f"{net} at {strength:g}" for net, strength in nets.items()) or "no net"
    errors = [depth.follows(picture, case) for picture, case in zip(made, cases, strict=True)]
    say(f"overlapping scenes, {name}", (not e for e in errors), str(dict(Counter(kind for e in errors for kind in e))))
    for things in (1, 2):
        say(f"  {things} things", (not e for e, case in zip(errors, cases, strict=True) if len(case.order) == things))
    shown = [rgb(values) for net, values in maps_of(cases).items() if net in nets]
    show(name.replace(" ", "_"), *shown, made)


def by_picture(painter: Painter) -> None:
    """Pictures of one object as prompts, without a text."""
    cases = list(depth.cases(SEEDS["image prompt"], 0, FLAGS.count, things=1))
    made = painter.imitate([case.picture for case in cases], [""] * len(cases))
    found = [find_objects(picture) for picture in made]
    things = [case.scene.things[0] for case in cases]
    first = [objects[0] if len(objects) == 1 else None for _, objects in found]
    colour = [one is not None and one.colour == thing.colour for one, thing in zip(first, things, strict=True)]
    shape = [one is not None and one.shape == thing.shape for one, thing in zip(first, things, strict=True)]
    grounds = [find_objects(case.picture)[0].colour for case in cases]
    ground = [background.colour == asked for (background, _), asked in zip(found, grounds, strict=True)]
    say("image prompt without a text: the colour kept", colour)
    say("  the shape", shape)
    say("  both", (a and b for a, b in zip(colour, shape, strict=True)))
    say("  the ground's colour", ground)
    show("image_prompt", [case.picture for case in cases], made)


def main() -> None:
    painter = Painter()
    parts: dict[str, Callable[[], None]] = {
        "edges": partial(by_edges, painter),
        "overlapping, no net": partial(by_depth, painter, {}),
        "overlapping, edges": partial(by_depth, painter, {"edges": 1.0}),
        "overlapping, depth": partial(by_depth, painter, {"depth": 1.0}),
        "overlapping, both": partial(by_depth, painter, {"edges": 1.0, "depth": 1.0}),
        "image prompt": partial(by_picture, painter),
    }
    for name, part in parts.items():
        if name.startswith(FLAGS.part):
            part()


if __name__ == "__main__":
    flags.DEFINE_integer("count", 200, "Cases of each kind.", lower_bound=1)
    flags.DEFINE_integer("batch", 50, "Pictures made at once.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Sampler steps.")
    flags.DEFINE_float("scale", 3.0, "Of the guidance.")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures.")
    flags.DEFINE_list("strengths", ["1", "0.5"], "Of the edge net.")
    flags.DEFINE_float("strength", 1.0, "Of the image prompt.")
    flags.DEFINE_string("part", "", "Only the parts whose name begins so.")
    for name in NAMES:
        flags.DEFINE_string(name.replace(" ", "_"), None, f"The {name} to score; by default the shipped one.")
    flags.DEFINE_string("sheets", None, "Folder for contact sheets.")
    _cli.run(main)
