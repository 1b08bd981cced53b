"""Text encoders with their tokenizers, and how a text becomes the states that a U-Net attends to.

What of the text encoders that is, is a matter of the family (Podell et al. 2023, arXiv:2307.01952, section 2.1, for
SDXL):

    SD 1.x, 2.x    the last hidden states after the final norm
    SDXL           the last but one before it, of every encoder side by side; and the last encoder's pooled state
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from sdjax.config import ClipTextConfig
from sdjax.core.short import short
from sdjax.model.families import Family
from sdjax.nn.clip import NewWords
from sdjax.text import prompts
from sdjax.text.grammar import Grammar
from sdjax.text.tokens import Tokenizer
from sdjax.text.words import Vector

Texts = Mapping[str, str]  # by text encoder


# component, ids `l`, depth, new words `l` -> (hidden states `l d`, pooled `d`)
EncodeRow = Callable[[str, Sequence[int], int, NewWords | None], tuple[np.ndarray, np.ndarray]]
# Of each text encoder, the vectors float32 `n d` of each new word.
NewVectors = Mapping[str, Mapping[str, np.ndarray]]


def counts_of(new: NewVectors) -> dict[str, dict[str, int]]:
    """How many vectors each new word has, by encoder, as `text.prompts.chunks` takes them."""
    return {name: {word: len(array) for word, array in own.items()} for name, own in new.items()}


CONVENTIONS = ("diffusers", "a1111", "comfy")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder, the tokenizer that goes with it, and the sentences that it knows where they are few."""

    config: ClipTextConfig
    tokenizer: Tokenizer
    grammar: Grammar | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ClipSkip:
    """Which layer's hidden states are taken, as one of the peers counts; as text `convention:count`.

    Attributes:
      convention: "diffusers": count layers are left out beyond the family's usual ones, of the prompt alone; the
        negative prompt keeps all (pipeline_stable_diffusion.py, encode_prompt).
        "a1111": the count-th layer from the end, 1 being the last, of both; OpenAI's CLIP in SD 1.x alone, other
        encoders stay as they are (modules/sd_hijack_clip.py).
        "comfy": the layer -count as its CLIPSetLastLayer numbers them, of both, in every family (comfy/sd1_clip.py).
    """

    convention: str = "diffusers"
    count: int = 0

    @classmethod
    def read(cls, value: "int | str | ClipSkip | None", style: str) -> "ClipSkip":
        """From its text; a number alone counts as the prompts' style does, plain as diffusers. Raises ValueError."""
        if isinstance(value, cls):
            return value
        if value is None:
            return cls()
        own = style if style in CONVENTIONS else "diffusers"
        convention, _, count = value.rpartition(":") if isinstance(value, str) else (own, ":", str(value))
        convention = convention or own
        least = 0 if convention == "diffusers" else 1
        if convention not in CONVENTIONS or isinstance(value, bool) or not count.lstrip("-").isdecimal():
            raise ValueError(f"clip_skip {short(value)} cannot be understood; write diffusers:1, a1111:2 or comfy:-2")
        number = -int(count) if convention == "comfy" else int(count)
        if number < least:
            first = "comfy:-1" if convention == "comfy" else f"{convention}:{least}"
            raise ValueError(f"clip_skip {value!r}: {convention} counts from {first}, which leaves nothing out")
        return cls(convention, number)

    def __str__(self) -> str:
        return f"{self.convention}:{'-' if self.convention == 'comfy' else ''}{self.count}"

    def depth(self, config: ClipTextConfig, family: Family, negative: bool) -> int:
        """How far from the end the layer lies, 1 the last. Raises ValueError where there is no such layer."""
        depth = family.layer
        if self.convention == "diffusers" and not negative:
            depth = family.layer + self.count
        if self.convention == "a1111" and family.skips_by_a1111(config):
            depth = self.count
        if self.convention == "comfy":
            depth = self.count
        if depth > config.num_hidden_layers + 1:
            raise ValueError(f"clip_skip {self}: this text encoder has {config.num_hidden_layers} layers")
        return depth


@dataclass(frozen=True, eq=False)
class Encoding:
    """How texts are encoded: in which style, by which encoders, to which depth.

    Attributes:
      encoders: by component. encode: runs one of them on one row of ids.
      family: which of an encoder's states are taken. style: of the prompts. clip_skip: see `ClipSkip`.
      new: words that the encoders' vocabularies do not have.
    """

    encoders: Mapping[str, TextEncoder]
    encode: EncodeRow
    family: Family
    style: str
    clip_skip: ClipSkip
    new: NewVectors = field(default_factory=dict)

    def __call__(self, texts: Texts, negative: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The text's hidden states `c l e` in c pieces, and its pooled state `d`: the first piece's, as peers do.

        Encoders that need fewer pieces than another get empty ones, as in A1111 and ComfyUI.
        """
        made = {name: self._one(name, texts[name], negative) for name in self.encoders}
        most = max(len(states) for states, _ in made.values())
        side_by_side = []
        for name, (states, _) in made.items():
            empty = [self._empty(name, negative)[0]] * (most - len(states))
            side_by_side.append(np.stack([*states, *empty]))
        return np.concatenate(side_by_side, -1), made[list(made)[-1]][1]

    def _one(self, name: str, text: str, negative: bool) -> tuple[list[np.ndarray], np.ndarray]:
        depth = self._depth(name, negative)
        rows = self.rows(name, text)
        encoded = [self.encode(name, row.ids, depth, self._new_words(name, row.vectors)) for row in rows]
        states = []
        for row, (raw, _) in zip(rows, encoded, strict=True):
            weights = np.asarray(row.weights, np.float32)
            plain = (weights == 1).all()
            states.append(raw if plain else prompts.weigh(raw, weights, self._empty(name, negative)[0], self.style))
        return states, encoded[0][1]

    @cached_property
    def rows(self) -> Callable[[str, str], list[prompts.Chunk]]:
        """The rows of an encoder's text: made once, since a text that is cut gives a warning."""
        counts = counts_of(self.new)
        return cache(
            lambda name, text: prompts.chunks(text, self.encoders[name].tokenizer, self.style, counts.get(name, {}))
        )

    @cached_property
    def _new_words(self) -> Callable[[str, Sequence[tuple[int, Vector]]], NewWords | None]:
        """What stands in a row in place of its ids, None for most: made once, so that a row is known again by it."""

        def made(name: str, vectors: Sequence[tuple[int, Vector]]) -> NewWords | None:
            if not vectors:
                return None
            encoder = self.encoders[name]
            spliced = np.zeros((encoder.tokenizer.max_length, encoder.config.hidden_size), np.float32)
            here = np.zeros(len(spliced), bool)
            for place, (word, number) in vectors:
                spliced[place], here[place] = self.new[name][word][number], True
            return NewWords(here, spliced)

        return cache(made)

    def _empty(self, name: str, negative: bool) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows(name, "")[0]
        return self.encode(name, row.ids, self._depth(name, negative), None)

    def _depth(self, name: str, negative: bool) -> int:
        return self.clip_skip.depth(self.encoders[name].config, self.family, negative)
