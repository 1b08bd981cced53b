"""Tokens: transformers' ids (golden), rows of the encoder's length, a vocabulary of one's own, bad input."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.model.builtin import ASSETS
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


def test_the_shipped_tokenizer_reads_as_the_installed_transformers_does():
    """The golden ids are of one version of transformers; this is the one that is installed."""
    from transformers import CLIPTokenizer

    folder = ASSETS / "shapes" / "tokenizer"
    ours, theirs = Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)
    texts = ["a red circle above a blue square", "A Large  STAR, on a white background!", "", "a ring's \u00e9 \u4e2d"]
    want = theirs(texts, padding="max_length", max_length=ours.max_length, truncation=True).input_ids
    np.testing.assert_array_equal(ids(ours, texts), want)


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
    with pytest.raises(ValueError, match=r"prompts\[1\] must be a string, not None"):
        tokenizer.tokens(["red", None])
    with pytest.raises(ValueError, match="not Unicode text: it has half of a surrogate pair"):
        tokenizer.tokens(["red \ud83d"])


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
        ("vocab.json", '{"a": 1}', "neither every byte nor the unk_token"),
        ("vocab.json", '{"a": "1"}', "vocab.json: the id of 'a' must be a whole number, not '1'"),
        ("vocab.json", '{"a": true}', "the id of 'a'"),
        ("vocab.json", '{"a": -1}', "the id of 'a'"),
        ("vocab.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("merges.txt", "#version: 0.2\nxx yy\n", "do not fit each other: .*xx"),
        ("merges.txt", "#version: 0.2\na b c\n", "'a b c' is not a pair"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "is BPE, this is 'WordPiece'"),
        ("tokenizer.json", '{"model": 3}', "is BPE, this is 3"),
        ("tokenizer.json", '{"model": {"type": "BPE", "merges": {}}}', "merges must be a list, not a dict"),
        ("tokenizer.json", '{"model": {"type": "BPE", "merges": [["a"]]}}', "'a' is not a pair"),
        ("tokenizer.json", '{"model": {"type": "BPE", "merges": [[1, "a"]]}}', "is not a pair"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": []}}', "must be an object, not a list"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "tokenizer_config.json: model_max_length"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "model_max_length"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "whole numbers as ids"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {}}}', "added token 9 must have a text"),
        ("added_tokens.json", '{"<cat>": [1]}', "added_tokens.json: added tokens must be"),
        ("special_tokens_map.json", '{"pad_token": 3}', "pad_token"),
        ("special_tokens_map.json", '{"pad_token": ""}', "pad_token"),
        ("special_tokens_map.json", '{"pad_token": "\\ud800"}', "pad_token"),
    ):
        with pytest.raises(ValueError, match=match):
            Tokenizer.load(broken(name, text))
    copy = broken("vocab.json", "")
    (copy / "vocab.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match="vocab.json is not UTF-8"):
        Tokenizer.load(copy)
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        write_word_tokenizer(tmp_path / "short", ["red"], 2)


def test_read_takes_a_folders_files_by_name(folder, tokenizer):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    read = Tokenizer.read({**files, "README.md": b"\xff"}, "model.safetensors/tokenizer_2")
    np.testing.assert_array_equal(ids(read, PROMPTS), ids(tokenizer, PROMPTS))
    with pytest.raises(FileNotFoundError, match="model.safetensors/tokenizer_2/merges.txt is missing"):
        Tokenizer.read({"vocab.json": files["vocab.json"]}, "model.safetensors/tokenizer_2")
    with pytest.raises(ValueError, match="model.safetensors/tokenizer_2/vocab.json is not JSON"):
        Tokenizer.read({**files, "vocab.json": b"{"}, "model.safetensors/tokenizer_2")


def test_no_id_reaches_size(folder):
    """Where a vocabulary leaves ids out, the text encoder must still have a row for the highest."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    vocab = json.loads(files["vocab.json"]) | {"<|endoftext|>": 9999}
    assert Tokenizer.read({**files, "vocab.json": json.dumps(vocab).encode()}, "x").size == 10_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def objects(**values: st.SearchStrategy) -> st.SearchStrategy:
    """JSON objects with some of the keys that count, or anything else."""
    return st.fixed_dictionaries({}, optional=values) | JSON


TOKEN = objects(content=JSON, lstrip=JSON, special=JSON, id=JSON)
BPE = st.fixed_dictionaries({"type": st.just("BPE")}, optional={"vocab": JSON, "merges": JSON})
LISTED = st.dictionaries(st.sampled_from(["1", "600", "x"]), TOKEN, max_size=2)
FILES = {
    "vocab.json": JSON,
    "tokenizer.json": objects(model=BPE | JSON, added_tokens=st.lists(TOKEN, max_size=2) | JSON),
    "tokenizer_config.json": objects(model_max_length=JSON, pad_token=TOKEN, added_tokens_decoder=LISTED | JSON),
    "special_tokens_map.json": objects(unk_token=TOKEN, bos_token=TOKEN),
    "added_tokens.json": st.dictionaries(st.text(max_size=2), JSON, max_size=2) | JSON,
}
FILE = st.sampled_from([*FILES]).flatmap(lambda name: FILES[name].map(lambda value: (name, json.dumps(value).encode())))
RAW = st.tuples(st.sampled_from([*FILES, "merges.txt"]), st.binary(max_size=20))


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(FILE | RAW, max_size=2))
def test_whatever_a_folder_holds_is_read_or_refused(folder, changes):
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | dict(changes)
    try:
        tokenizer = Tokenizer.read(files, "here")
    except ValueError as error:
        assert "here" in str(error)
        return
    row = ids(tokenizer, ["a red circle, <|endoftext|> é"])[0]
    assert row.min() >= 0 and row.max() < tokenizer.size
