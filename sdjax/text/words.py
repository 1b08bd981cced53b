"""New words in a prompt: where they stand, and which places of a row their vectors take.

A new word (textual inversion, arXiv:2208.01618) is n vectors which a text encoder is shown in place of the embeddings
of n tokens. In the row of ids each of these places holds an ordinary id that nobody looks up, so that whatever is told
by the ids stays right: where the text ends, and with it the state that SDXL pools. How a prompt names a word of the
name w is a matter of its style:

    "plain"   w itself, anywhere, in these very letters: diffusers' added tokens, which are found before all others
    "a1111"   the tokens of w in a row, where the text has them, in any letters; of two that begin there the longer
    "comfy"   embedding:w, to the next white space; a comma behind it is text

The word then takes n places where the text took those of w. A1111 never parts them: where they do not fit a row they
begin the next. ComfyUI keeps fewer than 8 together. In "plain" a text is cut where its one row ends.

Sources: huggingface/diffusers loaders/textual_inversion.py, maybe_convert_prompt; AUTOMATIC1111/stable-diffusion-webui
modules/sd_hijack_clip.py, tokenize_line, and modules/textual_inversion/textual_inversion.py,
find_embedding_at_position; Comfy-Org/ComfyUI comfy/sd1_clip.py, _try_get_embedding.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from sdjax.core.errors import shown, unknown
from sdjax.core.notice import notice
from sdjax.text import cleaning
from sdjax.text.tokens import Tokenizer

MARK = "embedding:"  # ComfyUI's
MARKED = re.compile(rf"{MARK}(\S+)")
EXTENSIONS = (".safetensors", ".pt", ".bin")  # which ComfyUI's names may end in

Counts = Mapping[str, int]  # of vectors, by word
NONE: Counts = {}
# The ids of each word with the word, by the first of them, those with more first.
ById = Mapping[int, Sequence[tuple[list[int], str]]]


class Vector(NamedTuple):
    """What stands in a row in place of an id: a vector of a word, by its number from 0."""

    word: str
    number: int


def vectors(word: str, words: Counts) -> list[Vector]:
    """All of a word, in their order."""
    return [Vector(word, i) for i in range(words[word])]


def placeholder(tokenizer: Tokenizer) -> int:
    """The id in a vector's place: the least that neither begins nor ends a text."""
    return next(i for i in range(3) if i not in (tokenizer.bos, tokenizer.eos))


def pattern(names: Collection[str]) -> re.Pattern[str]:
    """Finds names in a text, of two that begin at one place the longer."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def by_id(names: Collection[str], tokenizer: Tokenizer) -> ById:
    """The words by the ids that A1111 finds them by."""
    found: dict[int, list[tuple[list[int], str]]] = {}
    for name in names:
        ids = tokenizer.pieces(cleaning.a1111(name, tokenizer.open_clip))
        found.setdefault(ids[0], []).append((ids, name))
    return {first: sorted(own, key=lambda one: -len(one[0])) for first, own in found.items()}


def find(ids: Sequence[int], known: ById) -> Iterator[int | str]:
    """The ids of a text, and where those of a word stand the word."""
    at = 0
    while at < len(ids):
        there = ((own, name) for own, name in known.get(ids[at], ()) if list(ids[at : at + len(own)]) == own)
        own, name = next(there, (None, None))
        yield ids[at] if own is None or name is None else name
        at += 1 if own is None else len(own)


def marked(text: str, words: Counts) -> tuple[str | None, str]:
    """A text that begins with ComfyUI's mark: the word that it names, and the text behind it; else None and the text.

    Raises ValueError for a name that there is none of, where there are any.
    """
    mark = MARKED.match(text)
    if mark is None or not words:
        return None, text
    rest = text[mark.end() :]
    for name, left in ((mark[1], ""), (mark[1].rstrip(","), mark[1][len(mark[1].rstrip(",")) :])):
        bare = next((name.removesuffix(end) for end in EXTENSIONS if name.endswith(end)), name)
        for one in (name, bare):
            if one in words:
                return one, left + rest
    raise ValueError(unknown(f"the prompt has {shown(mark[0], 80)!r}, which embeddings= does not hold", mark[1], words))


def fragments(text: str, names: Collection[str], style: str) -> list[str]:
    """What lies between the words of these names in a text; the text alone where there are none of them."""
    if not names:
        return [text]
    found = pattern([MARK + name for name in names] if style == "comfy" else names)
    return re.compile(found.pattern, re.IGNORECASE if style == "a1111" else 0).split(text)


def check(words: Counts, tokenizer: Tokenizer, style: str) -> None:
    """Raises ValueError for a name that cannot be found in prompts of this style, or has too many vectors.

    A name that is a word already is refused where it would stand for nothing else any more; in A1111's style, where a
    file's name is the word, it gives a warning.
    """
    room, seen = tokenizer.max_length - 2, dict[tuple[int, ...], str]()
    for name, count in words.items():
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise ValueError(f'embeddings must be named by words, as "<cat>", not {shown(repr(name), 60)}')
        if style == "comfy" and len(name.split()) > 1:
            raise ValueError(f"embeddings: {shown(repr(name), 60)} has white space, where ComfyUI's {MARK}name ends")
        if count > room:
            raise ValueError(
                f"embeddings: {shown(repr(name), 60)} has {count} vectors, and a row of this text encoder holds {room}"
            )
        ids = tuple(tokenizer.pieces(cleaning.a1111(name, tokenizer.open_clip) if style == "a1111" else name))
        if not ids or {tokenizer.bos, tokenizer.eos} & set(ids):
            raise ValueError(
                f'embeddings: {shown(repr(name), 60)} is no word to this tokenizer: choose another as "<cat>"'
            )
        if style == "a1111" and ids in seen:
            raise ValueError(f"embeddings: {seen[ids]!r} and {name!r} are the same tokens, so the name is used twice")
        seen[ids] = name
        if len(ids) == 1 and style != "comfy":
            _known_already(name, style)


def _known_already(name: str, style: str) -> None:
    told = f"embeddings: {shown(repr(name), 60)} is a word that the model knows"
    if style == "plain":
        raise ValueError(
            f'{told}, and every prompt with it would change: choose another such as "<{name.strip("<>")}>"'
        )
    notice(f"{told}: in these prompts it now stands for the embedding alone")
