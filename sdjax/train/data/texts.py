"""Texts of a run: what each picture's caption is in each of its turns, as arrays of a batch.

ids       {text encoder: int32 `b l`}, and whatever else the tokens bring (`words`, of textual inversion); or, where
          the states were made beforehand,
context   `b l d`, with `pooled` `b d` where the model has it, float32
empty     `b`, 1 where the caption is left out, in models that take zeros for it; in others the ids say it
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.train.data.captions import Captions
from sdjax.train.data.scan import Item
from sdjax.train.data.states import States

CAPTION = 3  # what is random about a picture; see also `order`, `pictures`

Tokenise = Callable[[Sequence[str]], Mapping[str, Any]]  # b texts -> arrays `b ..`: `captions.Tokens`


@dataclass(frozen=True, eq=False)
class Texts:
    """See above.

    Attributes:
      tokens: texts as arrays. zeros_for_empty: whether a caption that is left out is zeros.
      seed: of the run. states: made beforehand (`states.fill`), or None.
    """

    tokens: Tokenise
    captions: Captions = Captions()
    zeros_for_empty: bool = False
    seed: int = 0
    states: States | None = None

    def __post_init__(self) -> None:
        if self.states is not None and self.captions.shuffle:
            raise ValueError("captions whose tags are shuffled can have no states made beforehand; leave out one")

    def text(self, item: Item, place: int, turn: int) -> str | None:
        """The text of a picture in one of its turns, None where it is left out."""
        return self.captions.text(item.record.captions, (self.seed, CAPTION, int(place), int(turn)))

    def all(self, items: Sequence[Item]) -> list[str]:
        """Every text that may come, where tags are not shuffled; sorted."""
        found = {self.captions.prefix + caption for item in items for caption in item.record.captions}
        return sorted(found | ({""} if self.captions.dropout else set()))

    def arrays(self, texts: Sequence[str | None]) -> dict[str, Any]:
        """Of the texts of a batch. Raises ValueError where their states are not there."""
        empty = np.array([text is None and self.zeros_for_empty for text in texts], np.float32)
        tokens = self.tokens([text or "" for text in texts])
        if self.states is None:
            return {**tokens, "empty": empty} if self.zeros_for_empty else dict(tokens)
        return self.states.arrays(tokens, empty)
