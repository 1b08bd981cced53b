"""New words of prompts: `embeddings={"<cat>": x}`, from what was given to vectors for each of a model's encoders.

How a prompt names them is in `text.words`; what their files hold in `adapters.textual_inversion`.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.adapters.read import load_adapter
from sdjax.adapters.textual_inversion import TextualInversion
from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import NewVectors, Texts, counts_of
from sdjax.text import words
from sdjax.text.prompts import chunks

Embeddings = Mapping[str, TextualInversion]  # by word
SHOWN = 12  # letters of a digest, as many as A1111's


def opened(value: Any, spec: ModelSpec, style: str) -> dict[str, TextualInversion]:
    """What was given as embeddings= for prompts of this style, files opened.

    Raises ValueError, also for a word that cannot be found in such prompts; CheckpointError for a file that is none.
    """
    if isinstance(value, str):
        raise ValueError(
            f"these settings are of a picture made with the embeddings {short(value)}: pass your own by these words, "
            'as embeddings={"<cat>": sdjax.load_adapter(path)}'
        )
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f'embeddings must map words to textual inversions, as {{"<cat>": x}}, not {short(value)}')
    made = {word: _opened(word, one) for word, one in (value or {}).items()}
    for encoder in list(spec.encoders.values())[:1]:  # all of a model's tokenizers have one vocabulary
        words.check({word: len(one) for word, one in made.items()}, encoder.tokenizer, style)
    return made


def _opened(word: Any, value: Any) -> TextualInversion:
    value = load_adapter(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(value, TextualInversion):
        raise ValueError(
            f"embeddings[{short(word)}] must be a textual inversion, as sdjax.load_adapter(path) gives one, or its "
            f"path, not {short(value)}"
        )
    return value


def of_model(spec: ModelSpec, embeddings: Embeddings) -> NewVectors:
    """The vectors for each of a model's text encoders, by word. Raises ValueError for those of another width."""
    if not embeddings:
        return {}
    widths = {name: encoder.config.hidden_size for name, encoder in spec.encoders.items()}
    fitting = {word: one.check(widths, spec.name) for word, one in embeddings.items()}
    return {name: {word: own[name] for word, own in fitting.items()} for name in widths}


def told(embeddings: Embeddings) -> str:
    """The words in settings: each with the digest of its vectors, and never where they came from."""
    return ", ".join(f"{word}: {one.sha256[:SHOWN]}" for word, one in embeddings.items())


def warn_of_unused(spec: ModelSpec, new: NewVectors, texts: Iterable[Texts], style: str) -> None:
    """Warns, once, of new words that stand in none of the texts."""
    if not new:
        return
    found: set[str] = set()
    for name, text in {pair for one in texts for pair in one.items()}:
        if style == "plain":  # whose rows warn of what they cut, when they are made
            found |= set(words.pattern(new[name]).findall(text))
        else:
            rows = chunks(text, spec.encoders[name].tokenizer, style, counts_of(new)[name])
            found |= {vector.word for row in rows for _, vector in row.vectors}
    unused = [word for own in new.values() for word in own if word not in found]
    if unused:
        listed = ", ".join(dict.fromkeys(words.MARK + word if style == "comfy" else word for word in unused))
        notice(f"no prompt has {listed}, so {'these embeddings do' if len(set(unused)) > 1 else 'this embedding does'} "
               f"nothing{MEANT.get(style, '')}")  # fmt: skip


MEANT = {
    "plain": "; a word must stand in the prompt letter for letter",
    "a1111": "; there it must be a word of its own: no sign directly before or behind it that joins one of its own",
}
