"""Tokens: transformers' ids (golden), rows of the encoder's length, a vocabulary of one's own, bad input."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text import Tokenizer, write_word_tokenizer
from tests.golden.make_tokens import LENGTH, PROMPTS, WORDS, write_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("words"), "words")


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(folder)


def ids(tokenizer: Tokenizer, prompts: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer.tokens(prompts)


@pytest.mark.parametrize("kind", GOLDEN)
def test_ids_are_transformers(tmp_path, kind):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, kind))
    np.testing.assert_array_equal(ids(tokenizer, PROMPTS), GOLDEN[kind])


def test_sd2_pads_with_an_exclamation_mark(tmp_path):
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, "sd2"))
    assert tokenizer.pad == 0 != tokenizer.eos
    assert tokenizer.tokens(["red"])[0].tolist()[2:4] == [tokenizer.eos, 0]


def test_newer_configs_say_all_themselves(tmp_path):
    """With `added_tokens_decoder` in tokenizer_config.json, the special tokens' own file does not count."""
    write_tokenizer(tmp_path, "sd2")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    config["added_tokens_decoder"] = {"564": {"content": "<cat-toy>", **flags}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad == tokenizer.eos
    assert tokenizer.pieces("red <cat-toy>") == [*tokenizer.pieces("red"), 564]


def test_rows(tokenizer):
    rows = tokenizer.tokens(["a red circle", ""])
    assert rows.shape == (2, LENGTH) and rows.dtype == np.int32
    assert rows[0].tolist()[:6] == [
        tokenizer.bos,
        *tokenizer.pieces("a red circle"),
        tokenizer.eos,
        tokenizer.pad,
    ]
    assert set(rows[1].tolist()[1:]) == {tokenizer.eos}
    assert tokenizer.size == rows.max() + 1 == tokenizer.eos + 1


def test_a_prompt_too_long_keeps_its_end_and_names_what_is_cut(tokenizer):
    prompt = "red " * 29 + "Circle above square"
    with pytest.warns(UserWarning, match=r"has 32 tokens and the text encoder sees 30; cut: 'above square'"):
        row = tokenizer.tokens([prompt])[0]
    assert row[-1] == tokenizer.eos and row[-2] == tokenizer.pieces("circle")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.tokens(["red " * 30])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_ids_of_the_vocabulary(tokenizer, text):
    row = ids(tokenizer, [text])[0]
    assert row[0] == tokenizer.bos and tokenizer.eos in row and row.min() >= 0 and row.max() < tokenizer.size


def test_every_word_is_one_token_of_its_own(tokenizer):
    found = [tokenizer.pieces(word) for word in WORDS]
    assert all(len(piece) == 1 for piece in found)
    assert len({piece[0] for piece in found}) == len(WORDS)


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.text("abcé", min_size=1, max_size=6), min_size=1, max_size=12, unique=True))
def test_words_that_share_their_letters_are_still_one_token_each(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("shared")
    write_word_tokenizer(folder, words, 8)
    tokenizer = Tokenizer.load(folder)
    assert all(len(tokenizer.pieces(word)) == 1 for word in words)
    shutil.rmtree(folder)


@pytest.mark.parametrize("word", ["Red", "two words", "", "x1", "don't", " a", "e\u0301"])
def test_words_that_cannot_be_one_token(tmp_path, word):
    with pytest.raises(ValueError, match="cannot be one token"):
        write_word_tokenizer(tmp_path / "t", ["red", word], 8)
    assert not (tmp_path / "t").exists()


def test_bad_prompts(tokenizer):
    with pytest.raises(ValueError, match="prompts is empty"):
        tokenizer.tokens([])
    with pytest.raises(ValueError, match="not the one string 'red'"):
        tokenizer.tokens("red")
    with pytest.raises(ValueError, match="prompt 1 is None, a NoneType"):
        tokenizer.tokens(["red", None])


def test_broken_folders(folder, tmp_path):
    def broken(name: str, text: str | None) -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / name).unlink() if text is None else (copy / name).write_text(text)
        return copy

    for name in ("vocab.json", "merges.txt"):
        with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
            Tokenizer.load(broken(name, None))
    for name, text, match in (
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("vocab.json", "[]", "must hold a JSON object"),
        ("vocab.json", '{"a": 1}', "do not fit"),
        ("merges.txt", "#version: 0.2\na b c\n", "'a b c' is not a pair"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "is BPE, this is 'WordPiece'"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "model_max_length"),
        ("special_tokens_map.json", '{"pad_token": 3}', "pad_token"),
    ):
        with pytest.raises(ValueError, match=match):
            Tokenizer.load(broken(name, text))
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        write_word_tokenizer(tmp_path / "short", ["red"], 2)
