"""Textual inversion: vectors learn that stand in a caption for a word that the text encoders do not have.

    min_v  E |e - f(x_t, t, c(caption with v in the word's places))|^2                                      (1)

(Gal et al. 2022, arXiv:2208.01618, equation 2.) The networks stay as they are, and so does the table of vectors: the
new ones are an array of their own, put in place after the table is looked up (`nn.clip.NewWords`), so that no other
word has a gradient, an optimiser's state, or decays (diffusers#1665). They begin as vectors of words that are known.

Written as all programs read it: one tensor, named by the word, which for diffusers is the token and which A1111 takes
whatever it is called (there a word is called as its file); for SDXL `clip_l` and `clip_g`, one for each encoder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import textual_inversion
from sdjax.core.errors import unknown
from sdjax.core.tree import Params
from sdjax.text import prompts, words
from sdjax.text.tokens import Tokenizer
from sdjax.train.methods.beside import FILE
from sdjax.weights.write import make_folder

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # and a file's names where a model has both


@dataclass(frozen=True)
class TextualInversion:
    """Equation 1; made by `of`.

    Attributes:
      word: as it stands in captions. starts: for each of its vectors the ids as whose vectors' mean it begins.
    """

    word: str
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, word: str, start: str | Sequence[str], tokenizer: Tokenizer, vectors: int | None = None
    ) -> "TextualInversion":
        """A new word of so many vectors; tokenizer: one of the model's, which all have one vocabulary.

        start: texts, a vector each, which begins as the mean of the vectors of its text's tokens. Or one text, over
        whose tokens `vectors` are spread as evenly as they go (A1111's rule); None is one vector for each token.

        Raises ValueError for a word that the model knows already or that cannot be found in captions, for more vectors
        than a row has places, and for a text without tokens.
        """
        if isinstance(start, str):
            ids = _ids(start, tokenizer)
            count = len(ids) if vectors is None else vectors
            starts: tuple[tuple[int, ...], ...] = tuple((ids[i * len(ids) // count],) for i in range(count))
        else:
            starts = tuple(_ids(text, tokenizer) for text in start)
            if vectors not in (None, len(starts)):
                raise ValueError(
                    f"{vectors} vectors, and start has {len(starts)} texts: give one for each, or one text"
                )
        if not starts:
            raise ValueError(f"the word {word!r} must have at least one vector")
        words.check({word: len(starts)}, tokenizer, "plain")
        return cls(word, starts)

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`: by text encoder, `n d`."""
        del key
        found = {name: jnp.asarray(_table(params[name]), jnp.float32) for name in ENCODERS if name in params}
        if not found:
            raise ValueError(unknown("textual inversion: this model has no text encoder", "text_encoder", [*params]))
        return {
            name: jnp.stack([table[jnp.asarray(ids)].mean(0) for ids in self.starts]) for name, table in found.items()
        }

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`: the vectors are params["words"], which a batch's "words" point into."""
        return {**params, "words": trainable}

    def rows(self, captions: Sequence[str], tokenizers: Mapping[str, Tokenizer]) -> dict[str, dict[str, np.ndarray]]:
        """Of captions, what an objective's batch has of them: "ids" and "words", int32 `b l` by text encoder.

        tokenizers: by text encoder. Where the word stands there is the id of another, which nobody looks up, and in
        "words" the number of its vector; -1 elsewhere. A caption without the word is as any other.
        """
        made: dict[str, dict[str, np.ndarray]] = {"ids": {}, "words": {}}
        for name, tokenizer in tokenizers.items():
            chunks = [prompts.chunks(one, tokenizer, "plain", {self.word: len(self.starts)})[0] for one in captions]
            which = np.full((len(chunks), tokenizer.max_length), -1, np.int32)
            for row, chunk in zip(which, chunks, strict=True):
                for place, vector in chunk.vectors:
                    row[place] = vector.number
            made["ids"][name] = np.array([chunk.ids for chunk in chunks], np.int32)
            made["words"][name] = which
        return made

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`: float32, FILE in the folder. Raises CheckpointError, also for numbers that are not finite."""
        vectors = {name: np.asarray(own, np.float32) for name, own in jax.device_get(trainable).items()}
        alone = len(vectors) == 1
        tensors = {self.word if alone else ENCODERS[name]: own for name, own in vectors.items()}
        said = {"ss_output_name": self.word, "sdjax.words": json.dumps([self.word])} | dict(metadata)
        path = folder / FILE
        made = textual_inversion.TextualInversion.read(path.stem, tensors, said, str(path))
        make_folder(folder)
        made.save(path)
        return path


def _ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of a text's tokens. Raises ValueError where it has none."""
    ids = tuple(tokenizer.pieces(text))
    if not ids:
        raise ValueError(f"textual inversion begins as the vectors of known words, and {text!r} has no token")
    return ids


def _table(encoder: Mapping[str, Any]) -> Any:
    """A text encoder's vectors, `vocabulary d`."""
    return encoder["text_model"]["embeddings"]["token_embedding"]["embedding"]
