"""What the text encoder is taught to say of a caption: a code for every token.

A U-Net that learns from pictures alone which word belongs to which object and which object to which place needs a
million of them: every mistake of binding looks like noise. Both can be read from the caption, so the text encoder
learns them first, from captions without pictures. A token's code is four words of a small language,

    (role, colour, shape, size),

each of one hot number. The longest caption leaves the last six of the 24 positions to padding, whatever it says, and
the encoder is causal: those positions have read it all. They are the places of the picture: SLOTS says which. A place
where something is names it, one where nothing is says so. The tokens before them tell what has been said of their own
thing so far, so that a weight on a word of the prompt counts for something.

All codes have one length, since the encoder ends in a LayerNorm, and a pair of colour and shape that training
never sees is the sum of two numbers that it does.
"""

from collections.abc import Iterator

import numpy as np

from experiments.shapes import models
from experiments.shapes.world import COLOURS, SHAPES, SIZES, Scene, Thing

SLOTS = ("top", "bottom", "left", "right", "centre", "ground")
"""The meaning of the last positions, in order."""
PLACES = {
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
    "to the left of": ("left", "right"),
    "to the right of": ("right", "left"),
}
"""Where the first and the second thing of a relation stand."""
WORDS = {
    "role": (*SLOTS, "first", "second", "other"),
    "colour": (*COLOURS, None),
    "shape": (*SHAPES, None),
    "size": (*SIZES, None),
}
"""The words of a code by kind; None: nothing said."""
LENGTH = models.TEXT_WIDTH**0.5
"""Of every code: as long as a LayerNorm makes a vector."""

Meaning = tuple[str, str | None, str | None, str | None]
"""(role, colour, shape, size)."""


def token_meanings(scene: Scene | None) -> list[Meaning]:
    """One meaning for each of the MAX_LENGTH tokens of a scene's caption; None is the empty caption."""
    before = models.MAX_LENGTH - len(SLOTS)
    said = [_NOTHING] if scene is None else [_NOTHING, *_words(scene)]
    return said + [_NOTHING] * (before - len(said)) + [_at(scene, slot) for slot in SLOTS]


_NOTHING: Meaning = ("other", None, None, None)


def _words(scene: Scene) -> Iterator[Meaning]:
    for role, thing in zip(("first", "second"), scene.things, strict=False):
        if role == "second":
            yield from [_NOTHING] * len(str(scene.relation).split())
        colour = shape = size = None
        for word in thing.phrase().split():
            size, colour, shape = (word if word in names else old for names, old in _kinds(size, colour, shape))
            yield role, colour, shape, size
    if scene.background is not None:
        for colour in (None, None, scene.background, scene.background):  # on, article, colour, background
            yield "ground", colour, None, None


def _kinds(size: str | None, colour: str | None, shape: str | None) -> Iterator[tuple[tuple, str | None]]:
    return zip((SIZES, tuple(COLOURS), SHAPES), (size, colour, shape), strict=True)


def _at(scene: Scene | None, slot: str) -> Meaning:
    if scene is None:
        return slot, None, None, None
    if slot == "ground":
        return slot, scene.background, None, None
    places = ("centre",) if scene.relation is None else PLACES[scene.relation]
    there: dict[str, Thing] = dict(zip(places, scene.things, strict=True))
    if slot not in there:
        return slot, None, None, None
    return slot, there[slot].colour, there[slot].shape, there[slot].size


def codes(scenes: list[Scene | None]) -> np.ndarray:
    """The codes of the scenes' tokens, float32 [b, l, TEXT_WIDTH]."""
    out = np.zeros((len(scenes), models.MAX_LENGTH, models.TEXT_WIDTH), np.float32)
    for row, scene in zip(out, scenes, strict=True):
        for vector, meaning in zip(row, token_meanings(scene), strict=True):
            vector[columns(meaning)] = LENGTH / len(WORDS) ** 0.5
    return out


def columns(meaning: Meaning) -> list[int]:
    """Where a code has its four ones: role, colour, shape, size."""
    starts = np.cumsum([0, *map(len, WORDS.values())])
    return [int(s) + names.index(word) for s, names, word in zip(starts, WORDS.values(), meaning, strict=False)]


def read(states: np.ndarray) -> np.ndarray:
    """The likeliest word of each kind in states [b, l, d]: int32 [b, l, 4], numbers into `WORDS`."""
    ends = np.cumsum([len(names) for names in WORDS.values()])
    return np.stack([part.argmax(-1) for part in np.split(states[..., : ends[-1]], ends[:-1], axis=-1)], axis=-1)
