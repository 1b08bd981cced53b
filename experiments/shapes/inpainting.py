"""Pictures of the shapes world with a hole in them: what the inpainting U-Net learns from and is asked for.

A mask m is bool [s, s], true where the picture is painted anew. What the U-Net sees beside the noisy latents, in the
order of diffusers' StableDiffusionInpaintPipeline, is

    (1)  m[8 i, 8 j]                     the mask at the latents' size, torch's "nearest" for a factor of 8,
    (2)  encode(picture * (1 - m))       with the picture in [-1, 1]: the hole is middle gray,

which `sdjax.images.masks` makes of a mask, and `encode_pictures` puts together.

A case is a picture, a mask and the caption of what the finished picture should show. It is made from a picture that
is right by construction: an object that the caption names is taken away, or stands there as another one, and the mask
covers its box with a margin.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from experiments.shapes import world
from experiments.shapes.world import Scene, Thing

FACTOR = 8
"""Pixels to a latent, along each side."""
KINDS = ("colour", "shape", "colour and shape", "new object")
"""What a case asks for: the object in the hole to become another, or an empty place to get one."""
MARGIN = (4, 12)
"""Least and largest margin of a case's mask round the object's box, in pixels of 128."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One thing to ask of an inpainting model."""

    picture: np.ndarray  # uint8 [s, s, 3]
    mask: np.ndarray  # bool [s, s], true = repaint
    scene: Scene  # what the finished picture shows
    inside: Scene  # what the hole shows by itself
    kind: str  # of KINDS


def grown(box: Box, margins: np.ndarray, size: int = 128) -> Box:
    """A box with margins [4] (left, top, right, bottom), cut at the picture's edge."""
    left, top, right, bottom = np.asarray(box) + np.array([-1, -1, 1, 1]) * margins
    return max(0, left), max(0, top), min(size, right), min(size, bottom)


def aligned(box: Box, size: int = 128) -> Box:
    """The least box around this one whose edges fall between latents."""
    left, top = (edge // FACTOR * FACTOR for edge in box[:2])
    right, bottom = (min(size, -(-edge // FACTOR) * FACTOR) for edge in box[2:])
    return left, top, right, bottom


def filled(box: Box, size: int = 128) -> np.ndarray:
    """A mask that is true inside a box."""
    left, top, right, bottom = box
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def training_mask(rng: np.random.Generator, boxes: list[Box], size: int = 128) -> np.ndarray:
    """A random hole: an object's box with margins (0.65), any box (0.25), or everything; a third of them aligned."""
    kind = rng.random()
    if kind < 0.65:
        hole = grown(boxes[rng.integers(len(boxes))], rng.integers(2, 22, 4), size)
    elif kind < 0.9:
        width, height = rng.integers(size // 6, size * 7 // 8, 2)
        left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        hole = (int(left), int(top), int(left + width), int(top + height))
    else:
        hole = (0, 0, size, size)
    return filled(aligned(hole, size) if rng.random() < 1 / 3 else hole, size)


def examples(
    seed: int, start: int, count: int, masks: int, *, things: int | None = None, size: int = 128
) -> Iterator[tuple[np.ndarray, list[np.ndarray], Scene]]:
    """Whole pictures, each with some holes and its scene; each depends on (seed, its index) alone."""
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        scene = world.sample_scene(rng, things=things)
        background, places = world.arrange(scene, rng)
        boxes = [world.box(place, size) for place in places]
        holes = [training_mask(rng, boxes, size) for _ in range(masks)]
        yield world.draw(scene.things, places, background, size), holes, scene


def cases(seed: int, start: int, count: int, *, things: int | None = None, size: int = 128) -> Iterator[Case]:
    """Things to ask, of every kind in turn; each depends on (seed, its index) alone."""
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        yield _case(rng, KINDS[index % len(KINDS)], things, size)


def _case(rng: np.random.Generator, kind: str, things: int | None, size: int) -> Case:
    """The scene drawn is what the finished picture shows; the object in the hole is then another one, or none."""
    scene = world.sample_scene(rng, things=things)
    background, places = world.arrange(scene, rng)
    which = int(rng.integers(len(places)))
    shown, where = list(scene.things), list(places)
    if kind == "new object":
        del shown[which], where[which]
    else:
        taken = tuple(thing.colour for thing in scene.things) + (background,)
        shown[which] = another(rng, scene.things[which], kind, taken)
    low, high = (margin * size // 128 for margin in MARGIN)
    hole = grown(world.box(places[which], size), rng.integers(low, high + 1, 4), size)
    inside = Scene((scene.things[which],), None, background)
    return Case(world.draw(shown, where, background, size), filled(hole, size), scene, inside, kind)


def another(rng: np.random.Generator, thing: Thing, kind: str, taken: tuple[str, ...] = ()) -> Thing:
    """The thing with another colour (not of those taken), another shape, or both; a new shape makes no
    unseen pair."""
    colours = [name for name in world.COLOURS if name not in taken]
    colour = colours[rng.integers(len(colours))] if "colour" in kind else thing.colour
    shapes = [name for name in world.SHAPES if name != thing.shape and (colour, name) not in world.UNSEEN]
    shape = shapes[rng.integers(len(shapes))] if "shape" in kind else thing.shape
    return replace(thing, colour=colour, shape=shape)
