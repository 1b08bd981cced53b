"""Pictures of the shapes world with a depth map: nearer objects drawn over farther ones.

The raw depth map of a scene, larger being nearer as in MiDaS's inverse depth, is 0 for the background, 1 for the far
object, 2 for the near one (or for the only one). What the U-Net sees beside the noisy latents is

    (1)  d = bicubic(raw map, to the latents' size)        torch's: a = -0.75, no anti-aliasing, edges repeated
    (2)  2 (d - min d) / (max d - min d) - 1               per picture

as in diffusers' StableDiffusionDepth2ImgPipeline and `sdjax.images.depth.depth_channel`. A caption is one of the
world's and does not say which object is the nearer: that is for the map to tell. Whether a picture follows both is read
from its pixels alone:

- **colour**: the median of each region of the map (away from its edges) is nearest to the colour that the caption
  gives it (any one colour for a background that the caption leaves open), and the region is of one colour;
- **outline**: the pixels nearest to that colour, among those of the picture's two or three, are the region's, with an
  intersection over union of at least MIN_OVERLAP.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.shapes import world
from experiments.shapes.objects import inner, near, nearest_colour
from experiments.shapes.world import COLOURS, Place, Scene

MIN_OVERLAP = 0.75
"""Least intersection over union of a region of the map and the pixels of its colour."""
VISIBLE = (0.4, 0.9)
"""Least and largest part of the far object that is aimed to be seen."""


@dataclass(frozen=True)
class Case:
    """A picture of the world with its depth map."""

    picture: np.ndarray  # uint8 [s, s, 3]
    depth: np.ndarray  # float32 [s, s]: 0 the background, 1 the farthest object, 2 the one before it
    scene: Scene
    order: tuple[int, ...]  # numbers of the scene's things, the farthest first


def cases(
    seed: int, start: int, count: int, *, things: int | None = None, size: int = 128, overlapping: float = 1.0
) -> Iterator[Case]:
    """Pictures with their maps; each depends on (seed, its index) alone. overlapping: how often two things do."""
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        scene = world.sample_scene(rng, things=things)
        background, places = world.arrange(scene, rng)
        order = tuple(int(i) for i in rng.permutation(len(places)))
        if len(places) == 2 and (overlapping == 1 or rng.random() < overlapping):
            places = _overlapping(rng, scene, places, order, size)
        ordered = [scene.things[i] for i in order], [places[i] for i in order]
        yield Case(world.draw(*ordered, background, size), depth_map(*ordered, size), scene, order)


def depth_map(things: list[world.Thing], places: list[Place], size: int = 128) -> np.ndarray:
    """The raw map float32 [size, size] of things at their places, the farthest first: 0 is the background."""
    depth = np.zeros((size, size), np.float32)
    for number, (thing, place) in enumerate(zip(things, places, strict=True), start=1):
        left, top, right, bottom = world.box(place, size)
        depth[top:bottom, left:right][world.cover(thing.shape, place, size) > 0.5] = number
    return depth


def _overlapping(
    rng: np.random.Generator, scene: Scene, places: list[Place], order: tuple[int, ...], size: int
) -> list[Place]:
    """The places, both moved towards the middle between them, so that the near object hides some of the far one.

    How much is drawn from VISIBLE, and the nearest to that taken: a small object cannot hide much of a large one.
    """
    things, middle = [scene.things[i] for i in order], np.mean([place[:2] for place in places], axis=0)
    whole = (world.cover(things[0].shape, places[order[0]], size) > 0.5).sum()
    target = rng.uniform(*VISIBLE) * whole
    tried = []
    for closer in np.arange(0.2, 1.0, 0.1):
        moved = [(*(middle + closer * (np.array(place[:2]) - middle)), place[2]) for place in places]
        seen = (depth_map(things, [moved[i] for i in order], size) == 1).sum()
        tried.append((abs(seen - target), closer, moved))
    return min(tried)[2]


def follows(image: np.ndarray, case: Case) -> tuple[str, ...]:
    """What is wrong with a picture uint8 [s, s, 3] of a case: of "background", "colour" and "outline", each once."""
    regions = [case.depth == number for number in range(len(case.order) + 1)]
    pixels = image.astype(np.float32)
    medians = [np.median(pixels[inner(region)], axis=0) for region in regions]
    asked = [case.scene.background] + [case.scene.things[i].colour for i in case.order]
    errors = set()
    for place, (name, region, median) in enumerate(zip(asked, regions, medians, strict=True)):
        if name not in (None, nearest_colour(median)) or near(pixels[inner(region)], median) < 0.75:
            errors.add("colour" if place else "background")
    ideal = np.array([median if name is None else COLOURS[name] for name, median in zip(asked, medians, strict=True)])
    nearest = np.linalg.norm(pixels[:, :, None] - ideal, axis=-1).argmin(-1)
    for number, region in enumerate(regions):
        found = nearest == number
        if (found & region).sum() < MIN_OVERLAP * (found | region).sum():
            errors.add("outline")
    return tuple(kind for kind in ("background", "colour", "outline") if kind in errors)
