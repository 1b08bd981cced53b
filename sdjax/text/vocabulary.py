"""CLIP's vocabulary, the same for every Stable Diffusion, so that a single file opens without the Hub.

The merge list m_1 ... m_48894 is all of it; the ids follow from it:

    (1)   [256 byte signs, the same 256 with `</w>`, m_1 joined ... m_48894 joined, BOS, EOS]  ->  0 ... 49407

`assets/clip/merges.txt.gz` holds the list as it is published [1]; the two files made here are those of
openai/clip-vit-large-patch14 byte for byte (tests/test_vocabulary.py has their hashes). What differs between
checkpoints is the token that pads a prompt: EOS, or "!" (id 0) in Stable Diffusion 2 and OpenCLIP's encoders.

[1] https://github.com/openai/CLIP (clip/bpe_simple_vocab_16e6.txt.gz, MIT licence, (c) 2021 OpenAI).
"""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_LENGTH = 77  # tokens that CLIP's text encoders were trained with, BOS and EOS included
MERGES = Path(__file__).parents[1] / "assets" / "clip" / "merges.txt.gz"


def clip_tokenizer_files(pad_token: str) -> dict[str, bytes]:
    """The files of a checkpoint's tokenizer folder, by name: CLIP's own, padding with `pad_token`.

    vocab.json and merges.txt are those of openai/clip-vit-large-patch14; the configs say what Stable Diffusion's say.
    Raises ValueError where `pad_token` is not in the vocabulary.
    """
    merges = gzip.decompress(MERGES.read_bytes())
    pairs = (line.split(" ") for line in merges.decode("utf-8").splitlines()[1:])
    vocab = ids_by_token(pairs)
    if pad_token not in vocab:
        raise ValueError(f'pad_token {pad_token!r} is not in CLIP\'s vocabulary; Stable Diffusion has {EOS!r} or "!"')
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": merges,
        "tokenizer_config.json": _text(_tokenizer_config(pad_token)),
        "special_tokens_map.json": _text(_special_tokens(pad_token)),
    }


def ids_by_token(merges: Iterable[tuple[str, str] | list[str]]) -> dict[str, int]:
    """Equation (1) for any merge list; two merges with one result share its id."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(sign + END_OF_WORD for sign in alphabet), *map("".join, merges), BOS, EOS]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def byte_alphabet() -> list[str]:
    """One printable character a byte, in CLIP's order: printable Latin-1 first, then the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def _special_tokens(pad_token: str) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    begin, end = {"content": BOS, **flags}, {"content": EOS, **flags}
    return {"bos_token": begin, "eos_token": end, "pad_token": pad_token, "unk_token": end}


def _tokenizer_config(pad_token: str) -> dict[str, object]:
    """As transformers 4.2x wrote it for Stable Diffusion 1.x and 2.x; newer versions read it too."""
    marked = {
        name: {"__type": "AddedToken", **token} if isinstance(token, dict) else token
        for name, token in _special_tokens(pad_token).items()
    }
    fixed = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": MAX_LENGTH}
    return {**fixed, **marked, "tokenizer_class": "CLIPTokenizer"}


def _text(value: dict[str, object]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
