"""The shapes world: captions of one or two flat coloured shapes, and the pictures they describe.

A caption is one line of this grammar, and nothing else is one:

    caption  = thing [relation thing] ["on" article colour "background"]
    thing    = article ["small" | "large"] colour shape
    relation = "above" | "below" | "to the left of" | "to the right of"

What a caption leaves unsaid (a size, the background, the exact place) is drawn at random when the picture is
made, so many pictures share a caption. Lengths are fractions of the picture's width, y points down.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.shapes.outlines import NEW_SHAPES, SHAPES, coverage
from experiments.shapes.outlines import shape_mask as shape_mask

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 160, 70),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 210),
    "purple": (130, 60, 180),
    "pink": (245, 140, 190),
    "brown": (120, 75, 40),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (20, 20, 20),
}
NEW_COLOURS: dict[str, tuple[int, int, int]] = {"lime": (155, 180, 65)}
"""Colours that no caption of the model's training names, at least 86 from each that one does."""
SIZES = ("small", "large")
RELATIONS = ("above", "below", "to the left of", "to the right of")
UNSEEN = frozenset(
    {
        ("purple", "star"),
        ("green", "heart"),
        ("orange", "ring"),
        ("cyan", "cross"),
        ("pink", "triangle"),
        ("brown", "diamond"),
    }
)
"""Pairs (colour, shape) that training never sees, in any caption."""
VOCABULARY = (
    *("a", "an", *SIZES, *COLOURS, *SHAPES),
    *("above", "below", "to", "the", "left", "right", "of", "on", "background"),
)
"""Every word a caption can hold, once."""
GRAMMAR: dict[str, Any] = {
    "words": {
        "ARTICLE": ["a", "an"],
        "SIZE": [*SIZES],
        "COLOUR": [*COLOURS],
        "SHAPE": [*SHAPES],
        "RELATION": [*RELATIONS],
    },
    "sentence": [
        *("ARTICLE", ["SIZE"], "COLOUR", "SHAPE"),
        ["RELATION", "ARTICLE", ["SIZE"], "COLOUR", "SHAPE"],
        ["on", "ARTICLE", "COLOUR", "background"],
    ],
    "example": "a large red circle on a white background",
}
"""The captions as `sdjax.text.grammar` reads them; it lies beside the model's tokenizer. "a orange ring" and two things
of one colour pass it: no caption says so, and the model draws them rightly."""
WIDTHS = {1: {"small": 0.42, "large": 0.70}, 2: {"small": 0.26, "large": 0.40}}
"""Width of an object's box by the number of objects and the size's name."""
JITTER = 0.04
"""An object's width differs from WIDTHS by at most this part of it."""
MIN_GAP = 0.03
"""Least distance of the two objects' boxes along the axis of the relation."""
MARGIN = 0.02
"""Least distance of an object's box from the picture's edge."""

Pairs = Literal["seen", "unseen", "any"]
Place = tuple[float, float, float]
"""Centre x, centre y and width of an object, fractions of the picture's width."""
_COLOUR_NAMES = tuple(COLOURS)
_ALL_COLOURS, _ALL_SHAPES = COLOURS | NEW_COLOURS, (*SHAPES, *NEW_SHAPES)
_THING = r"(an?) (?:(small|large) )?({colours}) ({shapes})".format(
    colours="|".join(_ALL_COLOURS), shapes="|".join(_ALL_SHAPES)
)
_CAPTION = re.compile(
    rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})?(?: on (an?) ({'|'.join(_ALL_COLOURS)}) background)?"
)


def _need(name: str, kind: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{name!r} is no {kind} of the shapes world; there are {', '.join(known)}.")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@dataclass(frozen=True)
class Thing:
    """One object as a caption names it; size None where the caption says nothing of it.

    Raises:
        ValueError: an unknown colour, shape or size.
    """

    colour: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        _need(self.colour, "colour", tuple(_ALL_COLOURS))
        _need(self.shape, "shape", _ALL_SHAPES)
        if self.size is not None:
            _need(self.size, "size", SIZES)

    def phrase(self) -> str:
        """The words with their article, such as "an orange ring" or "a large orange ring"."""
        return _article(" ".join(word for word in (self.size, self.colour, self.shape) if word))

    def __str__(self) -> str:
        return self.phrase()


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, or two with a relation, and perhaps a background's colour.

    Raises:
        ValueError: not one or two things, a relation without two things or the reverse, two things of one
            colour, or a thing of the background's colour.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene holds one or two things, not {len(self.things)}.")
        if (self.relation is not None) != (len(self.things) == 2):
            raise ValueError("a scene has a relation exactly if it holds two things.")
        if self.relation is not None:
            _need(self.relation, "relation", RELATIONS)
        if self.background is not None:
            _need(self.background, "colour", tuple(_ALL_COLOURS))
        colours = [thing.colour for thing in self.things]
        if len(set(colours)) < len(colours):
            raise ValueError(f"both things are {colours[0]}; two things of a scene differ in colour.")
        if self.background in colours:
            raise ValueError(f"a thing on a {self.background} background cannot be {self.background} too.")

    def caption(self) -> str:
        """The one caption of this scene, the inverse of `parse_caption`."""
        text = self.things[0].phrase()
        if self.relation is not None:
            text += f" {self.relation} {self.things[1].phrase()}"
        if self.background is not None:
            text += f" on {_article(self.background)} background"
        return text

    def __str__(self) -> str:
        return self.caption()

    def new(self) -> frozenset[str]:
        """The names of `NEW_SHAPES` and `NEW_COLOURS` in it."""
        names = {self.background} | {name for thing in self.things for name in (thing.colour, thing.shape)}
        return frozenset(names & {*NEW_COLOURS, *NEW_SHAPES})  # type: ignore[arg-type]

    def unseen(self) -> bool:
        """Whether any of the things is a pair that training never sees."""
        return any((thing.colour, thing.shape) in UNSEEN for thing in self.things)


def parse_caption(text: str) -> Scene:
    """The scene of a caption.

    Raises:
        ValueError: the text is no caption of the world: it says which word is unknown, or what the form is.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no caption of the shapes world: {_complaint(text)}")
    _, size, colour, shape, relation, _, size2, colour2, shape2, _, background = match.groups()
    things = [Thing(colour, shape, size)]
    if relation is not None:
        things.append(Thing(colour2, shape2, size2))
    scene = Scene(tuple(things), relation, background)
    if scene.caption() != text:
        raise ValueError(f"{text!r} is no caption of the shapes world: with a and an right, {scene.caption()!r}.")
    return scene


def _complaint(text: str) -> str:
    for word in text.split():
        if word not in VOCABULARY:
            near = difflib.get_close_matches(word.lower(), VOCABULARY, n=1)
            return f"it has no word {word!r}" + (f" (did you mean {near[0]!r}?)." if near else ".")
    return (
        "the form is 'a|an [small|large] COLOUR SHAPE [above|below|to the left of|to the right of "
        "a|an [small|large] COLOUR SHAPE] [on a|an COLOUR background]'."
    )


def _one_of(rng: np.random.Generator, names: tuple[str, ...], *, taken: tuple[str | None, ...] = ()) -> str:
    left = [name for name in names if name not in taken]
    return left[rng.integers(len(left))]


def _draw_thing(rng: np.random.Generator, pairs: Pairs, taken: tuple[str | None, ...]) -> Thing:
    if pairs == "unseen":
        left = sorted(pair for pair in UNSEEN if pair[0] not in taken)
        colour, shape = left[rng.integers(len(left))]
    else:
        colour = _one_of(rng, _COLOUR_NAMES, taken=taken)
        hidden = tuple(s for s in SHAPES if pairs == "seen" and (colour, s) in UNSEEN)
        shape = _one_of(rng, SHAPES, taken=hidden)
    return Thing(colour, shape, (None, None, *SIZES)[rng.integers(4)])


def sample_scene(rng: np.random.Generator, *, things: int | None = None, pairs: Pairs = "seen") -> Scene:
    """A random scene; a size is named with probability 1/2, a background too.

    Args:
        things: 1 or 2; None draws either with probability 1/2.
        pairs: "seen" holds no pair of `UNSEEN` (training), "unseen" at least one, "any" all alike.

    Raises:
        ValueError: another number of things, or another word for the pairs.
    """
    if things not in (None, 1, 2):
        raise ValueError(f"things is {things!r}; it is 1, 2 or None (either).")
    _need(pairs, "kind of pairs", ("seen", "unseen", "any"))
    count = int(rng.integers(1, 3)) if things is None else things
    kinds: list[Pairs] = [pairs] * count
    if pairs == "unseen" and count == 2:
        kinds[rng.integers(2)] = "any"
    drawn: list[Thing] = []
    # The unseen pair first, so that the other thing's colour leaves the choice among all of them even.
    for place in sorted(range(count), key=lambda i: kinds[i] != "unseen"):
        drawn.insert(place, _draw_thing(rng, kinds[place], tuple(thing.colour for thing in drawn)))
    relation = RELATIONS[rng.integers(4)] if count == 2 else None
    taken = tuple(thing.colour for thing in drawn)
    background = _one_of(rng, _COLOUR_NAMES, taken=taken) if rng.random() < 0.5 else None
    return Scene(tuple(drawn), relation, background)


def _place(scene: Scene, rng: np.random.Generator) -> list[Place]:
    count = len(scene.things)
    widths = [
        WIDTHS[count][thing.size or SIZES[rng.integers(2)]] * rng.uniform(1 - JITTER, 1 + JITTER)
        for thing in scene.things
    ]
    if count == 1:
        x, y = 0.5 + rng.uniform(-0.04, 0.04, 2)
        return [(x, y, widths[0])]
    first, second = widths if scene.relation in ("above", "to the left of") else widths[::-1]
    room = 1 - 2 * MARGIN - first - second
    gap = rng.uniform(MIN_GAP, min(room, 0.15))
    start = MARGIN + rng.uniform(0, room - gap)
    along = [start + first / 2, start + first + gap + second / 2]
    # Across the axis the centres differ by at most 0.3 of what they differ along it: the relation is plain.
    lean = rng.uniform(-0.15, 0.15) * (along[1] - along[0])
    middle = 0.5 + rng.uniform(-0.1, 0.1)
    across = [middle - lean, middle + lean]
    placed = list(zip(along, across, (first, second), strict=True))
    if scene.relation in ("above", "below"):
        placed = [(c, a, w) for a, c, w in placed]
    return placed if scene.relation in ("above", "to the left of") else placed[::-1]


def arrange(scene: Scene, rng: np.random.Generator) -> tuple[str, list[Place]]:
    """The background's colour and the place of each object; what the caption leaves open is drawn from rng."""
    taken = tuple(thing.colour for thing in scene.things)
    background = scene.background or _one_of(rng, _COLOUR_NAMES, taken=taken)
    return background, _place(scene, rng)


def box(place: Place, size: int = 128) -> tuple[int, int, int, int]:
    """The pixels that an object at a place can touch: left, top, right, bottom, the last two exclusive."""
    x, y, width = place
    (left, right), (top, bottom) = (
        (int(np.floor((c - width / 2) * size)), int(np.ceil((c + width / 2) * size))) for c in (x, y)
    )
    return left, top, right, bottom


def cover(shape: str, place: Place, size: int = 128) -> np.ndarray:
    """The part of each pixel of its `box` that an outline at a place covers: float32 [h, w] in [0, 1]."""
    (x, y, width), (left, top, right, bottom) = place, box(place, size)
    columns = (np.arange(left, right + 1) / size - x) / width + 0.5
    rows = (np.arange(top, bottom + 1) / size - y) / width + 0.5
    return coverage(shape, rows, columns)


def draw(things: Sequence[Thing], places: Sequence[Place], background: str, size: int = 128) -> np.ndarray:
    """A picture uint8 [size, size, 3] of things at their places, each over those before it."""
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = _ALL_COLOURS[background]
    for thing, place in zip(things, places, strict=True):
        left, top, right, bottom = box(place, size)
        part = cover(thing.shape, place, size)[..., None]
        patch = picture[top:bottom, left:right]
        blend = patch + part * (np.array(_ALL_COLOURS[thing.colour], np.float32) - patch)
        picture[top:bottom, left:right] = np.rint(blend)
    return picture


def render(scene: Scene, rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """A picture of the scene, uint8 [size, size, 3]; what the caption leaves open is drawn from rng.

    Raises:
        ValueError: a size under 16 pixels, where a small object has no outline left.
    """
    if size < 16:
        raise ValueError(f"a picture of {size} pixels is too small; the least is 16.")
    background, places = arrange(scene, rng)
    return draw(scene.things, places, background, size)


def examples(
    seed: int, start: int, count: int, *, pairs: Pairs = "seen", things: int | None = None, size: int = 128
) -> Iterator[tuple[np.ndarray, Scene]]:
    """Pictures with their scenes, one at a time; each depends on (seed, its index) alone."""
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, things=things, pairs=pairs)
        yield render(scene, rng, size), scene


def dataset(
    seed: int, start: int, count: int, pairs: Pairs = "seen", things: int | None = None, *, size: int = 128
) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 [count, size, size, 3] and their captions, the same for the same (seed, index) always.

    Raises:
        ValueError: a negative start or count, or an argument `sample_scene` or `render` refuses.
    """
    if start < 0 or count < 0:
        raise ValueError(f"start {start} and count {count} must not be negative.")
    pictures, captions = np.empty((count, size, size, 3), np.uint8), []
    for i, (picture, scene) in enumerate(examples(seed, start, count, pairs=pairs, things=things, size=size)):
        pictures[i] = picture
        captions.append(scene.caption())
    return pictures, captions
