"""The sentences that a small text encoder was trained on: whatever else it is told, it makes something up.

CLIP has read nearly everything that people write. A model of one's own has not, and a word that it never saw still gets
a picture. So beside its tokenizer may lie a `grammar.json`, by which a prompt is judged:

    {"words": {"COLOUR": ["red", "blue"], "SHAPE": ["circle", "ring"], "PLACE": ["above", "to the left of"]},
     "sentence": ["a", "COLOUR", "SHAPE", ["PLACE", "a", "COLOUR", "SHAPE"]],
     "example": "a red ring above a blue circle"}

A sentence is its parts in order: a name stands for one of its `words`, any other text for itself, and a list of parts
may be left out as a whole. Without `sentence` it is the words alone that count. Capitals and white space mean nothing,
signs are words, and the empty prompt is always known. It is data and no pattern: whoever wrote it can make no text slow
to judge.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sdjax.core.errors import closest
from sdjax.core.json_fields import Fields
from sdjax.core.short import short

FILE = "grammar.json"
PIECES = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")  # letters, one digit, or signs, as CLIP cuts a text
MOST_PHRASES, MOST_PARTS, MOST_DEPTH = 10_000, 200, 8
SHORT_LIST = 4  # a list of up to so many is shown where it stands in the sentence, a longer one by its name
MOST_SHOWN = 6  # of anything that a message lists

Phrase = tuple[str, ...]
Part = str | tuple["Part", ...]  # the name of a list, or words; a tuple may be left out


@dataclass(frozen=True, eq=False)
class Grammar:
    """What a text encoder knows.

    Attributes:
      words: the phrases of each list by its name. sentence: its parts; none where any order is right.
      example: a sentence.
    """

    words: Mapping[str, tuple[Phrase, ...]]
    sentence: tuple[Part, ...]
    example: str

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str) -> "Grammar":
        """From the object in a `grammar.json`; `where` it is, for messages. Raises ConfigError."""
        read = Fields(values, where)
        read.require("words", "example")
        made = cls(_words(read), _parts(read, values.get("sentence") or [], 0), read.text("example", ""))
        if len(list(_flat(made.sentence))) > MOST_PARTS:
            raise read.error("sentence", f"at most {MOST_PARTS} parts", values["sentence"])
        if made.unknown(made.example) or not made.holds(made.example):
            raise read.error("example", "a sentence of this very grammar", made.example)
        return made

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that it knows."""
        listed = (word for phrases in self.words.values() for phrase in phrases for word in phrase)
        return frozenset(listed) | {w for part in _flat(self.sentence) if part not in self.words for w in cut(part)}

    @cached_property
    def _choices(self) -> dict[str, frozenset[Phrase]]:
        return {name: frozenset(phrases) for name, phrases in self.words.items()}

    def unknown(self, text: str) -> list[str]:
        """The words of a text that it does not know, each once."""
        return [word for word in dict.fromkeys(cut(text)) if word not in self.vocabulary]

    def holds(self, text: str) -> bool:
        """Whether a text is one of its sentences, or empty."""
        words = cut(text)
        return not words or not self.sentence or len(words) in self._ends(self.sentence, words, {0})

    def _ends(self, parts: Iterable[Part], words: Phrase, starts: set[int]) -> set[int]:
        """Where in a text the parts can end that begin at one of `starts`."""
        for part in parts:
            if isinstance(part, tuple):
                starts = starts | self._ends(part, words, starts)
                continue
            choices = self._choices.get(part) or {cut(part)}
            lengths = {len(phrase) for phrase in choices}
            starts = {at + n for at in starts for n in lengths if words[at : at + n] in choices}
        return starts

    def complaint(
        self, texts: Iterable[str], fragments: Iterable[str] = (), taught: Set[str] = frozenset()
    ) -> str | None:
        """What of some texts it was not trained on, and what to write in their place; None where all is known.

        fragments: texts that need not be sentences, whose words alone are looked at; so are texts with words that the
        model was `taught`.
        """
        listed = list(dict.fromkeys(texts))
        unknown = dict.fromkeys(word for text in (*listed, *fragments) for word in self.unknown(text))
        strange = [word for word in unknown if word not in taught]
        loose = [text for text in listed if not self.unknown(text) and not self.holds(text)]
        said = []
        if strange:
            said.append(f"the word{'s' * (len(strange) > 1)} {_listing(self._near(word) for word in strange)}")
        if loose:
            kind = "sentences" if len(loose) > 1 else "a sentence"
            said.append(f"{kind} like {_listing(map(short, loose))} (outside of its grammar)")
        return f"was not trained on {' nor on '.join(said)}: the picture may show anything. {self}" if said else None

    def _near(self, word: str) -> str:
        found = closest(word[:40], self.vocabulary, cutoff=0.7)
        return short(word) + (f" (nearest: {found[0]!r})" if found else "")

    def __str__(self) -> str:
        """The sentence with its lists and an example, as a message shows it."""
        if not self.sentence:
            return f"Its words: {_listing(sorted(self.vocabulary), 100)}. For example: {self.example!r}"
        used = set(_flat(self.sentence))
        long = [name for name in self.words if name in used and len(self.words[name]) > SHORT_LIST]
        lists = "".join(f"; {name} is {', '.join(map(' '.join, self.words[name]))}" for name in long)
        return f"Its grammar: {self._shown(self.sentence)}{lists}. For example: {self.example!r}"

    def _shown(self, parts: Iterable[Part]) -> str:
        return " ".join(f"[{self._shown(part)}]" if isinstance(part, tuple) else self._choice(part) for part in parts)

    def _choice(self, part: str) -> str:
        phrases = self.words.get(part, ())
        return "|".join(map(" ".join, phrases)) if 0 < len(phrases) <= SHORT_LIST else part


def cut(text: str) -> Phrase:
    """The words of a text in small letters."""
    return tuple(PIECES.findall(text.lower()))


def _words(read: Fields) -> dict[str, tuple[Phrase, ...]]:
    lists = read.values["words"]
    if not isinstance(lists, Mapping) or not lists:
        raise read.error("words", "lists of words by name", lists)
    inner = Fields(lists, f"{read.where}: words")
    found = {name: tuple(cut(text) for text in inner.list(name, str)) for name in lists}
    for name, phrases in found.items():
        if not phrases or () in phrases:
            raise inner.error(name, "a list of words", lists[name])
    if sum(map(len, found.values())) > MOST_PHRASES:
        raise read.error("words", f"at most {MOST_PHRASES} words", lists)
    return found


def _parts(read: Fields, value: Any, depth: int) -> tuple[Part, ...]:
    """The parts of a sentence, or of what may be left out of it. Raises ConfigError."""
    if not isinstance(value, list) or depth > MOST_DEPTH:
        raise read.error("sentence", f"a list of texts and of such lists, at most {MOST_DEPTH} deep", value)
    made: list[Part] = []
    for part in value:
        if isinstance(part, str) and not cut(part):
            raise read.error("sentence", "of words", part)
        made.append(part if isinstance(part, str) else _parts(read, part, depth + 1))
    return tuple(made)


def _flat(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        yield from (part,) if isinstance(part, str) else _flat(part)


def _listing(items: Iterable[str], most: int = MOST_SHOWN) -> str:
    listed: Sequence[str] = list(items)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
