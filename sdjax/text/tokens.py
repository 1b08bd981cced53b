"""CLIP's tokenizer: from a prompt to a row of ids.

A prompt is made canonical (Unicode NFC, runs of white space to one space, lower case), cut into pieces
(words, single digits, runs of punctuation, English contractions), each piece is spelled in bytes, and the
bytes are joined by byte-pair encoding [1]: with the ranked merge list m_1, m_2, ... the pair of lowest rank
present is joined,

    (1)   ... x y ...  ->  ... xy ...     where (x, y) = m_r and r is the lowest rank present,

until no pair is in the list. The last byte of a piece carries the suffix `</w>`, so that "cat" the word and
"cat" in "category" are two symbols. The row that the text encoder sees is then

    (2)   [BOS, ids of the pieces ..., EOS, pad, pad, ...]      of the length l the encoder was trained with.

The work is done by the `tokenizers` library, the same Rust code that transformers' `CLIPTokenizer` wraps;
importing transformers for it costs about 1.2 s of a start that should take six.
`tests/parity/test_vocabulary.py` holds the two equal, id for id, with the real vocabulary.

[1] Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units (2016),
    arXiv:1508.07909; the byte alphabet and the pieces are those of https://github.com/openai/CLIP
    (clip/simple_tokenizer.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from sdjax.core.notice import notice
from sdjax.text.tokenizer_files import FILES, TokenizerFiles
from sdjax.text.vocabulary import BOS, END_OF_WORD, EOS, byte_alphabet, ids_by_token

Piece = TypeVar("Piece")  # an id, or what stands in its place

PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A CLIP tokenizer read from a checkpoint's `tokenizer/` folder.

    `max_length` is l, the length of every row; `bos`, `eos`, `pad` are ids; every id is below `size`.
    """

    max_length: int
    bos: int
    eos: int
    pad: int
    size: int
    _engine: tokenizers.Tokenizer = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """`read` the files of `folder`. Raises as `read` does."""
        paths = {name: Path(folder) / name for name in FILES}
        return cls.read({name: path.read_bytes() for name, path in paths.items() if path.is_file()}, str(folder))

    @classmethod
    def read(cls, files: Mapping[str, bytes], where: str) -> Tokenizer:
        """The tokenizer of a folder given as its files' bytes by name, as "vocab.json"; `where` it is, for messages.

        `vocab.json` and `merges.txt` (or `tokenizer.json`) and the special tokens count, other files do not.
        Raises FileNotFoundError where no vocabulary is there and ValueError where one cannot be read.
        """
        said = TokenizerFiles(files, where)
        special, (vocab, merges) = said.special_tokens(), said.vocabulary()
        added = [AddedToken(**token) for token in said.never_cut()]
        try:
            engine = _engine(vocab, merges, special["unk_token"], added)
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"{where}: vocabulary and merges do not fit each other: {error}") from error
        known = engine.get_vocab()
        bos, eos, pad = (known[special[f"{name}_token"]] for name in ("bos", "eos", "pad"))
        return cls(said.max_length(), bos, eos, pad, max(known.values()) + 1, engine)

    @property
    def open_clip(self) -> bool:
        """Whether it is OpenCLIP's, which pads with something else than its EOS."""
        return self.pad != self.eos

    def pieces(self, text: str) -> list[int]:
        """The ids of `text` alone: no BOS, EOS or padding, no limit on length."""
        return self._encode(text).ids

    def spelled(self, text: str) -> list[tuple[int, int]]:
        """The ids of `text` alone, each with where in it the piece begins."""
        encoded = self._encode(text)
        return [(one, start) for one, (start, _) in zip(encoded.ids, encoded.offsets, strict=True)]

    def _encode(self, text: str) -> tokenizers.Encoding:
        try:
            return self._engine.encode(text, add_special_tokens=False)
        except TypeError:
            raise ValueError(f"{text!r} is not Unicode text: it has half of a surrogate pair") from None

    def tokens(self, prompts: Sequence[str]) -> np.ndarray:
        """Rows of ids for the text encoder, equation (2): int32 [b, l].

        A prompt that does not fit is cut, keeping EOS, with a warning that names the words lost. Raises
        ValueError where `prompts` is empty, is one string, or holds anything but strings.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of strings, not the one string {prompts!r}; write [{prompts!r}]")
        if len(prompts) == 0:
            raise ValueError('prompts is empty: give at least one prompt ("" is one)')
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompts[{i}] must be a string, not {prompt!r} (of type {type(prompt).__name__})")
        rows = np.full((len(prompts), self.max_length), self.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = [self.bos, *self.fitting(prompt, self.spelled(prompt)), self.eos]
            row[: len(ids)] = ids
        return rows

    def fitting(self, prompt: str, spelled: Sequence[tuple[Piece, int]]) -> list[Piece]:
        """The pieces of `prompt` that fit between BOS and EOS, each given with its place in it; warns of those cut."""
        room = self.max_length - 2
        if len(spelled) > room:
            lost = prompt[spelled[room][1] :]
            notice(f"the prompt has {len(spelled)} tokens and the text encoder sees {room}; cut: {lost!r}")
        return [piece for piece, _ in spelled[:room]]


def _engine(vocab: dict[str, int], merges: list, unknown: str, added: list[AddedToken]) -> tokenizers.Tokenizer:
    """CLIP's canonical form, pieces and byte-pair encoding, as one `tokenizers` object."""
    engine = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unknown, end_of_word_suffix=END_OF_WORD))
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.add_tokens(added)
    return engine


def write_word_tokenizer(folder: str | Path, words: Sequence[str], max_length: int) -> None:
    """Write a CLIP-format tokenizer in which each of `words` is one token and any other text still has a
    spelling.

    The vocabulary is CLIP's own head (256 bytes, then the same with `</w>`), the merges that build the words,
    BOS and EOS last (the text encoder's pooled state is taken at the highest id). transformers'
    `CLIPTokenizer` loads the folder unchanged. Raises ValueError for a word that CLIP's canonical form would
    change or cut.
    """
    folder = Path(folder)
    if max_length < 3:
        raise ValueError(f"max_length must be at least 3 (BOS, one token, EOS), got {max_length}")
    merges = _merges_for(words, byte_alphabet())
    vocab = ids_by_token(merges)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = {
        **special,
        "model_max_length": max_length,
        "do_lower_case": True,
        "tokenizer_class": "CLIPTokenizer",
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, value in (("vocab", vocab), ("special_tokens_map", special), ("tokenizer_config", config)):
        text = json.dumps(value, ensure_ascii=False, indent=None if name == "vocab" else 2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _merges_for(words: Sequence[str], alphabet: list[str]) -> list[tuple[str, str]]:
    """Merges by rank that make each of `words` one symbol.

    A word is encoded with the merges so far and its pieces are joined from the left by new merges at the end
    of the list. New merges rank last, so no word before can take another path through equation (1).
    """
    cut = _engine({symbol: i for i, symbol in enumerate([*alphabet, EOS])}, [], EOS, [])
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [piece for piece, _ in cut.pre_tokenizer.pre_tokenize_str(word)]
        if len(pieces) != 1 or cut.normalizer.normalize_str(word) != word or word != word.strip():
            raise ValueError(f"{word!r} cannot be one token: it must be lower case, without spaces, one kind of sign")
        while len(symbols := _join(pieces[0], merges)) > 1:
            merges.append((symbols[0], symbols[1]))
    return merges


def _join(piece: str, merges: list[tuple[str, str]]) -> list[str]:
    """Equation (1) on one piece."""
    symbols = [*piece[:-1], piece[-1] + END_OF_WORD]
    rank = {pair: r for r, pair in enumerate(merges)}
    while present := [p for p in zip(symbols, symbols[1:], strict=False) if p in rank]:
        pair = min(present, key=rank.__getitem__)
        joined: list[str] = []
        for symbol in symbols:
            if joined and (joined[-1], symbol) == pair:
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined
    return symbols
