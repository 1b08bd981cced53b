"""What an adapter of the shapes model learns from: twenty pictures of a new thing, and the base's own word on old ones.

A new thing is an outline or a colour that no caption of the model's training names (`NEW_SHAPES`, `NEW_COLOURS`).
Exactly PICTURES pictures show it, drawn by the world's own renderer, with one object or two. Training sees each of them
mirrored and moved a little (VARIANTS of it, encoded once), and no other picture of the new thing. None of the twenty
has a new outline in one of the colours OTHERS, or a new colour on one of those outlines, and the captions by which an
adapter is judged are none of theirs.

Old captions keep their pictures by prior preservation (Ruiz et al. 2022, arXiv:2208.12242), with pictures that the
renderer draws of captions of the model's own training. What an adapter has to answer there is what the base answers,
noise for noise (`train_lora`), so it is the base that is preserved, its mistakes included.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments.shapes import encode, models, world
from experiments.shapes.batches import object_weights
from experiments.shapes.world import COLOURS, NEW_COLOURS, NEW_SHAPES, SHAPES, Scene
from sdjax.images.pixels import from_uint8

PICTURES, DOUBLE = 20, 8
"""How many pictures show the new thing, and how many of them another object too."""
OTHERS = ("green", "orange", "purple", "gray", "star", "ring")
"""Colours that no new outline, and outlines that no new colour has in the twenty pictures."""
VARIANTS, REACH = 32, 6
"""How often a picture is encoded, mirrored or not and moved by up to so many pixels."""
OLD, EMPTY = 1000, 0.2
"""Pictures of old captions, and the part of them whose caption is left out."""
ENCODED = 40  # pictures encoded at once; the numbers above are its multiples
_MIRRORED = {"to the left of": "to the right of", "to the right of": "to the left of"}

Encode = Callable[[np.ndarray], Any]
"""The text encoder: ids `b l` to hidden states `b l d`."""
Told = tuple[np.ndarray, list[str]]
"""Pictures' latents float16 `n h w c`, and their captions."""


def scenes(name: str, seed: int, things: int | None = None) -> Iterator[Scene]:
    """Random scenes in which one thing has the new outline or colour, without end.

    Raises ValueError for a name that is nothing new.
    """
    if name not in (*NEW_SHAPES, *NEW_COLOURS):
        raise ValueError(f"{name!r} is nothing new; there are {', '.join((*NEW_SHAPES, *NEW_COLOURS))}")
    kind, index = ("shape" if name in NEW_SHAPES else "colour"), 0
    while True:
        rng = np.random.default_rng([seed, index])
        scene, index = world.sample_scene(rng, things=things), index + 1
        drawn = list(scene.things)
        which = int(rng.integers(len(drawn)))
        drawn[which] = replace(drawn[which], **{kind: name})
        yield replace(scene, things=tuple(drawn))


def other(name: str, scene: Scene) -> str:
    """The colour of the new outline in a scene, or the outline that has the new colour."""
    thing = next(thing for thing in scene.things if name in (thing.shape, thing.colour))
    return thing.colour if name in NEW_SHAPES else thing.shape


def twenty(name: str, seed: int = 0) -> list[tuple[Scene, np.ndarray]]:
    """The pictures uint8 `128 128 3` of a new thing, with their scenes: sizes, relations, colours in even parts."""
    names = tuple(COLOURS) if name in NEW_SHAPES else SHAPES
    used = Counter({one: 0 for one in names if one not in OTHERS})
    endless = {things: scenes(name, seed, things) for things in (1, 2)}
    chosen: list[Scene] = []
    for i in range(PICTURES):
        things = 1 if i < PICTURES - DOUBLE else 2
        relation = None if things == 1 else world.RELATIONS[i % 4]
        wanted = ((None, *world.SIZES)[i % 3], i % 2 == 0, relation)
        scene = next(scene for scene in endless[things] if _kind(name, scene) == wanted and _rarest(name, scene, used))
        used[other(name, scene)] += 1
        chosen.append(scene)
    return [(scene, world.render(scene, np.random.default_rng([seed, 1, i]))) for i, scene in enumerate(chosen)]


def _kind(name: str, scene: Scene) -> tuple[str | None, bool, str | None]:
    """The new thing's size, whether a background is named, the relation."""
    size = next(thing.size for thing in scene.things if name in (thing.shape, thing.colour))
    return size, scene.background is not None, scene.relation


def _rarest(name: str, scene: Scene, used: Mapping[str, int]) -> bool:
    return used.get(other(name, scene)) == min(used.values())


def held_out(name: str, count: int, things: int | None, seed: int) -> list[Scene]:
    """`count` scenes with a new thing, each caption once, and none that one of the twenty pictures has."""
    known, chosen = {scene.caption() for scene, _ in twenty(name)}, dict[str, Scene]()
    for scene in scenes(name, seed, things):
        if scene.caption() not in known:
            chosen.setdefault(scene.caption(), scene)
        if len(chosen) == count:
            break
    return list(chosen.values())


def variant(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
    """The picture mirrored left to right or not, and moved by up to REACH pixels, with the scene that it then shows.

    Every outline is its own mirror image. Nothing but ground goes over the edge.
    """
    if rng.random() < 0.5:
        relation = scene.relation and _MIRRORED.get(scene.relation, scene.relation)
        picture, scene = picture[:, ::-1], replace(scene, relation=relation)
    apart = np.abs(picture.astype(int) - picture[0, 0]).max(2) > 0
    for axis in (0, 1):
        full = apart.any(1 - axis)
        before, after = (min(REACH, max(0, int(line.argmax()) - 2)) for line in (full, full[::-1]))
        picture = np.roll(picture, int(rng.integers(-before, after + 1)), axis)
    return scene, picture


def new_pictures(name: str, seed: int = 0) -> Told:
    """All variants of the twenty pictures, encoded."""
    rng = np.random.default_rng([seed, 2])
    made = [variant(scene, picture, rng) for scene, picture in twenty(name, seed) for _ in range(VARIANTS)]
    return encoded(np.stack([picture for _, picture in made])), [scene.caption() for scene, _ in made]


def old_pictures(seed: int = 1000) -> Told:
    """Pictures of old captions, encoded, some of them without theirs: what guidance leads away from stays, too."""
    pictures, captions = world.dataset(seed, 0, OLD)
    rng = np.random.default_rng([seed, 2])
    return encoded(pictures), ["" if rng.random() < EMPTY else caption for caption in captions]


def encoded(pictures: np.ndarray) -> np.ndarray:
    """Latents float16 `n h w c` of pictures uint8 `n H W 3`, by the shipped VAE."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float32), models.shipped("vae", models.VAE))
    to_latents = encode.encoder(params)
    groups = [pictures[start : start + ENCODED] for start in range(0, len(pictures), ENCODED)]
    return np.concatenate([np.asarray(to_latents(from_uint8(group)), np.float16) for group in groups])


class Lessons:
    """The batch of any step: as many pictures of each kind as asked for."""

    def __init__(
        self, pools: Mapping[str, Mapping[str, Any]], counts: Sequence[int], seed: int, prior: float = 1.0
    ) -> None:
        """pools: by kind, arrays `n ...` by name, of which "latents" is one. counts: of each kind in a batch.

        prior: the weight of the mean over the kind "old", the others having 1.
        """
        self.pools = {kind: {**pool, "weights": object_weights(pool["latents"])} for kind, pool in pools.items()}
        self.counts, self.seed, self.prior = counts, seed, prior

    def batch(self, n: int) -> dict[str, Any]:
        """Step n's batch, as `sdjax.train.losses.preserving` takes it: all kinds one after the other.

        An object's latents have more of the "weights". By "weight" the mean over the batch is the sum of the kinds'
        own means, the old one's times the prior.
        """
        rng = np.random.default_rng([self.seed, n])
        parts = [
            self._part(rng, kind, count / sum(self.counts), count)
            for kind, count in zip(self.pools, self.counts, strict=True)
        ]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def _part(self, rng: np.random.Generator, kind: str, share: float, count: int) -> dict[str, Any]:
        old, pool = kind == "old", self.pools[kind]
        picked = rng.integers(len(pool["latents"]), size=count)
        part = jax.tree.map(lambda values: values[picked], pool)
        weight = (self.prior if old else 1.0) / share
        return part | {"preserved": np.full(count, old, np.float32), "weight": np.full(count, weight, np.float32)}
