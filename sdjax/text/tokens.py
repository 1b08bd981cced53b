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
`tests/parity/test_checkpoints.py` holds the two equal, id for id.

[1] Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units (2016),
    arXiv:1508.07909; the byte alphabet and the pieces are those of https://github.com/openai/CLIP
    (clip/simple_tokenizer.py).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A CLIP tokenizer read from a checkpoint's `tokenizer/` folder.

    `max_length` is l, the length of every row; `bos`, `eos`, `pad` are ids; `size` is how many ids there are.
    """

    max_length: int
    bos: int
    eos: int
    pad: int
    size: int
    _engine: tokenizers.Tokenizer = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read `vocab.json` and `merges.txt` (or `tokenizer.json`) and the special tokens from `folder`.

        Raises FileNotFoundError where no vocabulary is there and ValueError where one cannot be read.
        """
        folder = Path(folder)
        settings = _settings(folder)
        added = _never_cut(folder, settings)
        vocab, merges = _vocabulary(folder)
        try:
            engine = _engine(vocab, merges, _content(settings["unk_token"]), added)
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise ValueError(f"{folder}: vocabulary and merges do not fit each other: {error}") from error
        known = engine.get_vocab()
        bos, eos, pad = (known[_content(settings[f"{name}_token"])] for name in ("bos", "eos", "pad"))
        return cls(_max_length(settings), bos, eos, pad, len(known), engine)

    def pieces(self, text: str) -> list[int]:
        """The ids of `text` alone: no BOS, EOS or padding, no limit on length."""
        return self._engine.encode(text, add_special_tokens=False).ids

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
                raise ValueError(f"prompt {i} is {prompt!r}, a {type(prompt).__name__}; a prompt is a string")
        rows = np.full((len(prompts), self.max_length), self.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = [self.bos, *self._fitting(prompt), self.eos]
            row[: len(ids)] = ids
        return rows

    def _fitting(self, prompt: str) -> list[int]:
        """The ids of `prompt`, cut to the l - 2 that fit between BOS and EOS."""
        encoded = self._engine.encode(prompt, add_special_tokens=False)
        room = self.max_length - 2
        if len(encoded.ids) > room:
            lost = prompt[encoded.offsets[room][0] :]
            warnings.warn(
                f"the prompt has {len(encoded.ids)} tokens and the text encoder sees {room}; cut: {lost!r}",
                stacklevel=4,
            )
        return encoded.ids[:room]


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` with the special tokens in effect, in transformers' order of precedence.

    `special_tokens_map.json` overrules `tokenizer_config.json`: Stable Diffusion 2 pads with "!" (id 0) only
    by the former. It is not read where `added_tokens_decoder` shows that the config was written by a newer
    transformers.
    """
    config = _json(folder / "tokenizer_config.json")
    overrule = {} if "added_tokens_decoder" in config else _json(folder / "special_tokens_map.json")
    defaults = dict(zip(SPECIAL_TOKENS, (BOS, EOS, EOS, EOS), strict=True))
    settings = {**defaults, **config, **overrule}
    for name in SPECIAL_TOKENS:
        token = settings[name]
        if not isinstance(token["content"] if isinstance(token, dict) and "content" in token else token, str):
            raise ValueError(f"{folder}: {name} must be a string or an object with its content, not {token!r}")
    return settings


def _never_cut(folder: Path, settings: dict[str, Any]) -> list[AddedToken]:
    """The special tokens and those added after training, which are looked for before a text is cut."""
    named = {_content(settings[name]): _added_token(settings[name], special=True) for name in SPECIAL_TOKENS}
    if "added_tokens_decoder" in settings:
        listed = {int(i): token for i, token in settings["added_tokens_decoder"].items()}
    else:
        listed = {i: text for text, i in _json(folder / "added_tokens.json").items()}
        listed |= {token["id"]: token for token in _json(folder / "tokenizer.json").get("added_tokens", [])}
    for _, token in sorted(listed.items()):
        named[_content(token)] = _added_token(token, special=_content(token) in named)
    return list(named.values())


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added_token(token: str | dict[str, Any], special: bool) -> AddedToken:
    """A token of its own from its JSON form: its text, or an object with flags on how it is matched."""
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=not special)
    flags = {key: value for key, value in token.items() if key in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(token["content"], special=token.get("special", special), **flags)


def _json(path: Path) -> dict[str, Any]:
    """What `path` holds, or {} where it is not there."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(found).__name__}")
    return found


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The ids by token and the merges by rank, from `tokenizer.json` or `vocab.json` with `merges.txt`."""
    whole = _json(folder / "tokenizer.json")
    if whole:
        model = whole.get("model", {})
        if model.get("type") != "BPE":
            raise ValueError(f"{folder / 'tokenizer.json'}: a CLIP tokenizer is BPE, this is {model.get('type')!r}")
        merges = model.get("merges", [])
        return model.get("vocab", {}), [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: a tokenizer folder holds vocab.json and merges.txt")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in map(str.strip, lines) if line and not line.startswith("#version")]
    bad = next((m for m in merges if len(m) != 2), None)
    if bad is not None:
        raise ValueError(f"{folder / 'merges.txt'}: {' '.join(bad)!r} is not a pair of symbols")
    return _json(folder / "vocab.json"), merges


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


def _max_length(settings: dict[str, Any]) -> int:
    """l of equation (2). Configs without a limit write 1e30: CLIP's own 77 then stands."""
    length = settings.get("model_max_length") or 77
    if not isinstance(length, int | float) or length < 3:
        raise ValueError(f"tokenizer_config.json: model_max_length is {length!r}; CLIP's is 77")
    return 77 if length > 100_000 else int(length)


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
    alphabet = _byte_alphabet()
    symbols = [*alphabet, *(symbol + END_OF_WORD for symbol in alphabet)]
    merges = _merges_for(words, alphabet)
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*symbols, *map("".join, merges), BOS, EOS]))}
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


def _byte_alphabet() -> list[str]:
    """One printable character a byte, in CLIP's order: printable Latin-1 first, then the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


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
