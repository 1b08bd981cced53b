"""States: what the text encoders make of every caption, made beforehand and kept, each once however often it comes.

For encoders that do not learn. In memory the states of a data set would be far more than its latents (0.3 MB a caption
for SDXL, in float16, and 0.13 MB a picture), so they stay on the disk and are read as they are needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.train.data.store import Store, key

Encode = Callable[[Mapping[str, np.ndarray]], tuple[Any, Any]]
"""{text encoder: ids `b l`} -> (states `b l d`, pooled `b d` or None)."""


@dataclass(frozen=True)
class States:
    """Kept in a folder. encoder: a digest of the text encoders' parameters (`store.digest`)."""

    folder: Path
    encoder: str

    @property
    def store(self) -> Store:
        """Where they are."""
        return Store(self.folder, "text states")

    def arrays(self, tokens: Mapping[str, Any], empty: np.ndarray) -> dict[str, np.ndarray]:
        """{"context": `b l d`, "pooled": `b d`} of a batch's tokens, float32; zeros where `empty` `b` is 1.

        Raises ValueError where a text's are not there.
        """
        if set(tokens) != {"ids"}:
            raise ValueError("texts with new words in them have no states made beforehand: those words learn")
        found = [self._read(row) for row in _rows(tokens["ids"])]
        here = 1 - empty
        return {
            name: np.stack([(one[name] * kept).astype(np.float32) for one, kept in zip(found, here, strict=True)])
            for name in found[0]
        }

    def fill(
        self, texts: Sequence[str], tokens: Callable[[Sequence[str]], Mapping[str, Any]], encode: Encode, size: int = 8
    ) -> int:
        """Makes the states of texts where they are not there, `size` at a time; returns how many were made.

        Raises ValueError where they are not finite in float16, OSError.
        """
        rows = {self._key(row): (text, row) for text in texts for row in _rows(tokens([text])["ids"])}
        missing = [(name, *own) for name, own in rows.items() if not self.store.good(name)]
        for start in range(0, len(missing), size):
            some = missing[start : start + size]
            padded = some + some[-1:] * (size - len(some))  # one program
            ids = {name: np.stack([row[name] for _, _, row in padded]) for name in some[0][2]}
            context, pooled = jax.device_get(encode(ids))
            for i, (name, text, _) in enumerate(some):
                made = {"context": context[i]} | ({} if pooled is None else {"pooled": pooled[i]})
                self.store.write(name, made, np.float16, repr(text))
        return len(missing)

    def _key(self, row: Mapping[str, np.ndarray]) -> str:
        return key("text states", self.encoder, dict(row))

    def _read(self, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.store.read(self._key(row))
        if found is None:
            raise ValueError(
                f"{self.folder} has no text states of one of the captions, or those of other text encoders: they have "
                "to be made before the first step"
            )
        return found


def _rows(ids: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The ids of each text by itself."""
    for i in range(len(next(iter(ids.values())))):
        yield {name: own[i] for name, own in ids.items()}
