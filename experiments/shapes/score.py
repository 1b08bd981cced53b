"""Does a picture of the shapes world show what its caption says? It reads pixels only and knows no model.

    python -m experiments.shapes.score --count=1000

prints, in about ten seconds, the part of rendered pictures that passes their own caption (>= 99 %) and the
part that passes a caption with one attribute changed (<= 1 %), with 95 % intervals.

`experiments.shapes.objects` finds the background and the objects; a picture passes if

- **background**: the border is of one colour, the named one where the caption names one;
- **count**: there are as many objects as the caption names;
- **colour**: each named object is found by its colour, and is of one colour;
- **shape**: its nearest ideal outline is the named one, with an intersection over union of at least
  MIN_OVERLAP, and its box is about as high as wide;
- **size**, where the caption names one: of the two widths the named one is the nearer in ratio, so the limit
  is their geometric mean: 0.542 of the picture's width with one object, 0.322 with two;
- **relation**: the centres of the boxes differ in that direction, and more along its axis than across.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from experiments.shapes.objects import Found, find_objects
from experiments.shapes.objects import nearest_colour as nearest_colour
from experiments.shapes.world import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    WIDTHS,
    Scene,
    Thing,
    examples,
    parse_caption,
)

ERRORS = ("background", "count", "colour", "shape", "size", "relation")
"""What can be wrong with a picture."""
CHANGES = ("background", "colour", "shape", "size", "relation")
"""What `wrong_scene` can change."""
MIN_OVERLAP = 0.75
"""Least intersection over union with the ideal outline."""
MAX_ASPECT = 1.3
"""Largest ratio of a bounding box's sides; every shape of the world is as high as wide."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its caption, and the kinds of errors (of ERRORS, each once) if not."""

    ok: bool
    errors: tuple[str, ...]


def _match(things: Sequence[Thing], found: Sequence[Found]) -> list[Found | None]:
    """For each thing the found object of its colour; those left over go to the things left over, in order."""
    left = list(found)
    matched: list[Found | None] = []
    for thing in things:
        same = next((f for f in left if f.colour == thing.colour), None)
        matched.append(same)
        if same is not None:
            left.remove(same)
    return [m if m is not None or not left else left.pop(0) for m in matched]


def _thing_errors(thing: Thing, found: Found, count: int) -> set[str]:
    errors = set()
    if found.colour != thing.colour or not found.even:
        errors.add("colour")
    aspect = max(found.width, found.height) / min(found.width, found.height)
    if found.shape != thing.shape or found.overlap < MIN_OVERLAP or aspect > MAX_ASPECT:
        errors.add("shape")
    if thing.size is not None:
        small, large = (WIDTHS[count][name] for name in SIZES)
        is_large = found.width * found.height > small * large
        if is_large != (thing.size == "large"):
            errors.add("size")
    return errors


def _holds(relation: str, first: Found, second: Found) -> bool:
    right, down = second.x - first.x, second.y - first.y
    along = {"above": down, "below": -down, "to the left of": right, "to the right of": -right}[relation]
    across = right if relation in ("above", "below") else down
    return along > abs(across)


def score(image: np.ndarray | Image.Image, caption: str | Scene, new: Collection[str] = ()) -> Verdict:
    """Whether a picture, PIL's or uint8 [s, s, 3], shows its caption: every named object once, and nothing else.

    new: outlines and colours beyond the model's training that count beside those of the caption: of a model that knows
    the hexagon, none may stand where a circle was asked for.

    Raises:
        ValueError: no caption of the shapes world, or no picture.
    """
    scene = parse_caption(caption) if isinstance(caption, str) else caption
    background, found = find_objects(np.asarray(image), scene.new() | {*new})
    errors: set[str] = set()
    if not background.even or scene.background not in (None, background.colour):
        errors.add("background")
    if len(found) != len(scene.things):
        errors.add("count")
    matched = _match(scene.things, found)
    for thing, match in zip(scene.things, matched, strict=True):
        if match is not None:
            errors |= _thing_errors(thing, match, len(scene.things))
    if scene.relation is not None:
        first, second = matched
        # A missing object is an error of count already.
        if first is not None and second is not None and not _holds(scene.relation, first, second):
            errors.add("relation")
    return Verdict(not errors, tuple(kind for kind in ERRORS if kind in errors))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (JASA 22, 1927, 209-212): sound near 0 and 1 and at small n.

    Raises:
        ValueError: n < 1 or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: n must be at least 1, successes in [0, n].")
    z = 1.959964
    middle = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (successes * (n - successes) / n + z * z / 4) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def rate(right: int, of: int) -> str:
    """How many of how many, with Wilson's interval. Raises ValueError as `wilson`."""
    low, high = wilson(right, of)
    return f"{right}/{of} = {right / of:.1%} ({low:.1%} to {high:.1%})"


def wrong_scene(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one attribute changed to another value; None where the caption is silent about it.

    Args:
        kind: "background", "colour", "shape", "size" or "relation".

    Raises:
        ValueError: another kind.
    """
    if kind not in CHANGES:
        raise ValueError(f"{kind!r} is nothing to change in a scene; there are {', '.join(CHANGES)}.")
    which = int(rng.integers(len(scene.things)))
    old = getattr(scene if kind in ("background", "relation") else scene.things[which], kind)
    if old is None:
        return None
    taken = {thing.colour for thing in scene.things} | {scene.background}
    values = {"background": tuple(COLOURS), "colour": tuple(COLOURS), "shape": SHAPES, "size": SIZES}
    others = [v for v in values.get(kind, RELATIONS) if v != old and v not in taken]
    new = others[rng.integers(len(others))]
    if kind == "background":
        return replace(scene, background=new)
    if kind == "relation":
        return replace(scene, relation=new)
    things = list(scene.things)
    things[which] = replace(things[which], **{kind: new})
    return replace(scene, things=tuple(things))


def _line(name: str, passed: Sequence[bool]) -> str:
    low, high = wilson(sum(passed), len(passed))
    rate = sum(passed) / len(passed)
    return f"{name:<24} {sum(passed):>5} of {len(passed):<5} {rate:7.2%}   [{low:.2%}, {high:.2%}]"


def main() -> None:
    """Checks the scorer on rendered pictures and prints the two tables."""
    right: list[bool] = []
    wrong: dict[str, list[bool]] = {kind: [] for kind in CHANGES}
    rng = np.random.default_rng(flags.FLAGS.seed)
    for picture, scene in examples(flags.FLAGS.seed, 0, flags.FLAGS.count, pairs="any"):
        right.append(score(picture, scene).ok)
        for kind, passed in wrong.items():
            changed = wrong_scene(scene, kind, rng)
            if changed is not None:
                passed.append(score(picture, changed).ok)
    print(_line("right captions pass", right))
    print(_line("wrong captions pass", [ok for passed in wrong.values() for ok in passed]))
    for kind, passed in wrong.items():
        if passed:
            print(_line(f"  wrong {kind}", passed))


if __name__ == "__main__":
    # Defined here, so that a program which imports the scorer may name its own flags as it likes.
    flags.DEFINE_integer("count", 1000, "How many pictures to render.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Which pictures.", lower_bound=0)
    _cli.run(main)
