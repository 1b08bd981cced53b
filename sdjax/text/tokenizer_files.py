"""What the files of a checkpoint's `tokenizer/` folder say: vocabulary, merges, special tokens, length.

Two forms are about: `vocab.json` with `merges.txt`, and `tokenizer.json`, which holds both and is preferred where it
is there. `tokenizer_config.json` has the rest. A file is somebody else's: whatever it holds, it is read or refused
with a ValueError that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdjax.text.vocabulary import BOS, EOS, MAX_LENGTH, ids_by_token

VOCAB, MERGES, WHOLE, CONFIG = "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
FILES = (VOCAB, MERGES, WHOLE, CONFIG, SPECIAL, ADDED)
DEFAULTS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")

Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's files by name (`FILES`; others do not count), and `where` they are, for messages."""

    files: Mapping[str, bytes]
    where: str

    def vocabulary(self) -> tuple[dict[str, int], Merges]:
        """The ids by token and the merges by rank. Raises FileNotFoundError where there is neither form."""
        whole = self.json(WHOLE)
        vocab, merges = self._whole(whole.get("model")) if whole else self._pair()
        unknown = self.special_tokens()["unk_token"]
        if unknown not in vocab and not {*ids_by_token([])} - {BOS, EOS} <= vocab.keys():
            raise ValueError(f"{self.where}: the vocabulary has neither every byte nor the unk_token {unknown!r}")
        return vocab, merges

    def special_tokens(self) -> dict[str, str]:
        """The texts of "bos_token", "eos_token", "unk_token" and "pad_token"."""
        return {name: _content(token) for name, token in self._special().items()}

    def never_cut(self) -> list[dict[str, Any]]:
        """The special tokens and those added after training, which are looked for before a text is cut.

        Each as what `tokenizers.AddedToken` takes.
        """
        named = {_content(token): _added(token, special=True) for token in self._special().values()}
        for i, token in sorted(self._listed().items()):
            if not _is_token(token):
                raise ValueError(f"{self.where}: added token {i} must have a text, not {_short(token)}")
            named[_content(token)] = _added(token, special=_content(token) in named)
        return list(named.values())

    def max_length(self) -> int:
        """How many tokens a row has. Configs without a limit write 1e30: CLIP's own 77 then stands."""
        length = self.json(CONFIG).get("model_max_length") or MAX_LENGTH
        if not isinstance(length, int | float) or not length >= 3:  # so that NaN does not pass
            raise self.error(CONFIG, f": model_max_length is {_short(length)}; CLIP's is {MAX_LENGTH}")
        return MAX_LENGTH if length > 100_000 else int(length)

    def path(self, name: str) -> Path:
        return Path(self.where) / name

    def error(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self.path(name)}{problem}")

    def text(self, name: str) -> str:
        try:
            return self.files[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(name, f" is not UTF-8: {error}") from None

    def json(self, name: str) -> dict[str, Any]:
        """The object in the file `name`, or {} where there is none."""
        if name not in self.files:
            return {}
        text = self.text(name)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self.error(name, f" is not JSON: {error}") from None
        except RecursionError:
            raise self.error(name, " is nested too deeply to be a tokenizer's") from None
        if not isinstance(found, dict):
            raise self.error(name, f" must hold a JSON object, not {_short(found)}")
        return found

    def _special(self) -> dict[str, Any]:
        """The special tokens in effect, in their JSON form and transformers' order of precedence.

        `special_tokens_map.json` overrules `tokenizer_config.json`: Stable Diffusion 2 pads with "!" (id 0) only
        by the former. It is not read where `added_tokens_decoder` shows that the config was written by a newer
        transformers.
        """
        config = self.json(CONFIG)
        overrule = {} if "added_tokens_decoder" in config else self.json(SPECIAL)
        found = {name: {**DEFAULTS, **config, **overrule}[name] for name in DEFAULTS}
        for name, token in found.items():
            if not _is_token(token):
                what = f"must be a string or an object with its content, not {_short(token)}"
                raise ValueError(f"{self.where}: {name} {what}")
        return found

    def _listed(self) -> dict[int, Any]:
        """The tokens added after training, in their JSON form, by id."""
        config, added, whole = self.json(CONFIG), self.json(ADDED), self.json(WHOLE)
        name = CONFIG
        try:
            if "added_tokens_decoder" in config:
                return {int(i): token for i, token in config["added_tokens_decoder"].items()}
            name = ADDED
            listed = {int(i): text for text, i in added.items()}
            name = WHOLE
            return listed | {int(token["id"]): token for token in whole.get("added_tokens", [])}
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.error(name, f": added tokens must be tokens with whole numbers as ids: {error!r}") from None

    def _pair(self) -> tuple[dict[str, int], Merges]:
        """`vocabulary` from vocab.json and merges.txt."""
        for name in (VOCAB, MERGES):
            if name not in self.files:
                raise FileNotFoundError(f"{self.path(name)} is missing: a tokenizer folder holds {VOCAB} and {MERGES}")
        lines = map(str.strip, self.text(MERGES).split("\n"))
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return self._ids(VOCAB, self.json(VOCAB)), self._pairs(MERGES, merges)

    def _whole(self, model: Any) -> tuple[dict[str, int], Merges]:
        """`vocabulary` from tokenizer.json's `model`, whose merges are "x y" or ["x", "y"]."""
        kind = model.get("type") if isinstance(model, dict) else model
        if kind != "BPE":
            raise self.error(WHOLE, f": a CLIP tokenizer is BPE, this is {_short(kind)}")
        merges = model.get("merges", [])
        if not isinstance(merges, list):
            raise self.error(WHOLE, f": merges must be a list, not a {type(merges).__name__}")
        cut = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        return self._ids(WHOLE, model.get("vocab", {})), self._pairs(WHOLE, cut)

    def _ids(self, name: str, vocab: Any) -> dict[str, int]:
        """`vocab` if it is an id for every token."""
        if not isinstance(vocab, dict):
            raise self.error(name, f": the vocabulary must be an object, not a {type(vocab).__name__}")
        for token, i in vocab.items():
            if type(i) is not int or not 0 <= i < 2**31:
                raise self.error(name, f": the id of {_short(token)} must be a whole number, not {_short(i)}")
        return vocab

    def _pairs(self, name: str, merges: list[Any]) -> Merges:
        """`merges` if each is two symbols."""
        for merge in merges:
            pair = isinstance(merge, list) and len(merge) == 2
            if not pair or not all(isinstance(symbol, str) and symbol for symbol in merge):
                texts = isinstance(merge, list) and all(isinstance(symbol, str) for symbol in merge)
                raise self.error(name, f": {_short(' '.join(merge) if texts else merge)} is not a pair of symbols")
        return [(first, second) for first, second in merges]


def _is_token(token: Any) -> bool:
    """Whether `token` is a token's JSON form: its text, or an object with its text (`content`) and flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return isinstance(text, str) and text != "" and text.encode("utf-8", "ignore").decode() == text


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added(token: str | dict[str, Any], special: bool) -> dict[str, Any]:
    if isinstance(token, str):
        return {"content": token, "special": special, "normalized": not special}
    flags = {key: value is True for key, value in token.items() if key in FLAGS}
    return {"content": token["content"], "special": token.get("special", special) is True, **flags}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
