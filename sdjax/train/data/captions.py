"""Captions: which text goes with a picture in each of its turns, and its tokens.

    one of its captions -> its tags shuffled, but for the first few -> a trigger before it -> perhaps left out   (1)

A caption that is left out (one in ten, in the training of Stable Diffusion) teaches the model to paint without a text,
which classifier-free guidance needs. It is drawn anew in every turn: a caption left out once and for all would be a
picture that never has one. What stands in its place is the empty text, or zeros in models that take those (SDXL).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.core.notice import notice
from sdjax.core.short import cut
from sdjax.text.tokens import Tokenizer


@dataclass(frozen=True)
class Captions:
    """Equation 1.

    Attributes:
      dropout: the part of the turns, 0 to 1, in which the caption is left out.
      shuffle: whether its tags, parted by `separator`, come in another order every turn; the first `keep` stay.
      prefix: stands before every caption that is not left out, as a trigger word.
    """

    dropout: float = 0.1
    shuffle: bool = False
    keep: int = 0
    separator: str = ","
    prefix: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"captions: dropout is a part of the turns, 0 to 1, not {self.dropout}")
        if self.keep < 0 or not self.separator:
            raise ValueError("captions: keep must be at least 0, and the separator some sign")

    def text(self, captions: Sequence[str], seed: tuple[int, ...]) -> str | None:
        """The text of one turn, None where it is left out. seed: of the run, the picture and the turn."""
        rng = np.random.default_rng(seed)
        left_out, chosen = rng.random() < self.dropout, captions[int(rng.integers(len(captions)))]
        if left_out:
            return None
        return self.prefix + (self._shuffled(chosen, rng) if self.shuffle else chosen)

    def _shuffled(self, caption: str, rng: np.random.Generator) -> str:
        tags = [tag for one in caption.split(self.separator) if (tag := one.strip())]
        kept, rest = tags[: self.keep], tags[self.keep :]
        glue = self.separator if self.separator.isspace() else f"{self.separator} "
        return glue.join([*kept, *(rest[i] for i in rng.permutation(len(rest)))])


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts -> {"ids": {text encoder: int32 `b l`}}. tokenizers: by their text encoder's component."""

    tokenizers: Mapping[str, Tokenizer]

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"ids": {name: _rows(one, texts) for name, one in self.tokenizers.items()}}

    def check(self, texts: Sequence[str]) -> None:
        """Warns, once, of texts that are longer than an encoder sees."""
        for name, one in self.tokenizers.items():
            room = one.max_length - 2
            long = [text for text in texts if len(one.pieces(text)) > room]
            if long:
                notice(
                    f"{len(long)} of {len(texts)} captions have more than the {room} tokens that {name} sees, and are "
                    f"cut; the first: {cut(long[0])!r}"
                )


def _rows(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """As `Tokenizer.tokens`, without its warning, which would come in every step."""
    rows = np.full((len(texts), tokenizer.max_length), tokenizer.pad, np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = [tokenizer.bos, *tokenizer.pieces(text)[: tokenizer.max_length - 2], tokenizer.eos]
        row[: len(ids)] = ids
    return rows
