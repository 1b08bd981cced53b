"""The sentences of a small text encoder: read from its folder, and a warning for any other."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdjax
from experiments.shapes.world import GRAMMAR, sample_scene
from sdjax.config import ConfigError
from sdjax.model.builtin import ASSETS, SHIPPED, open_shipped
from sdjax.request.prompting import sentences
from sdjax.text.grammar import Grammar
from tests.checkpoints import make_checkpoint

FILE = ASSETS / "shapes" / "tokenizer" / "grammar.json"
SHAPES = Grammar.read(GRAMMAR, "grammar.json")


def complaints(call, *args, **kwargs) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    return told


def test_the_file_beside_the_model_is_the_worlds():
    assert json.loads(FILE.read_text("utf-8")) == GRAMMAR


@pytest.mark.parametrize("pairs", ["seen", "unseen"])
def test_no_caption_of_the_world_is_complained_of(pairs):
    rng = np.random.default_rng(0)
    assert SHAPES.complaint([sample_scene(rng, pairs=pairs).caption() for _ in range(1000)]) is None


@pytest.mark.parametrize("text", ["", " ", "A large  red circle\n", "an orange ring above a blue star"])
def test_what_else_it_knows(text):
    assert SHAPES.complaint([text]) is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("red circle", []),
        ("a circle", []),
        ("a red", []),
        ("a circle red", []),
        ("a red large circle", []),
        ("a red circle above", []),
        ("a red circle above a blue square below a green star", []),
        ("a blue circle left of a red star", []),
        ("on a white background", []),
        ("a white background", []),
        ("a red circle a blue square", []),
        ("a red circle on a white background on a blue background", []),
        ("two blue squares", ["two", "squares"]),
        ("a red circle and a blue square", ["and"]),
        ("a photo of a cat", ["photo", "cat"]),
        ("a red circle, on a white background", [","]),
        ("(a red circle:1.3)", ["(", ":", "1", ".", "3", ")"]),
        ("ein roter Kreis", ["ein", "roter", "kreis"]),
        ("a red 猫", ["猫"]),
        ("🟥", ["🟥"]),
        ("Scene(things=(Thing(colour='red'),))", ["scene", "(", "things", "=(", "thing", "colour", "='", "'),))"]),
    ],
)
def test_anything_else_is_named(text, words):
    assert SHAPES.unknown(text) == words
    told = SHAPES.complaint(["a red circle", text, text])
    assert told is not None and "For example: 'a large red circle on a white background'" in told
    for word in words[:6]:
        assert repr(word) in told
    if not words:
        assert repr(text) in told and "outside of its grammar" in told


def test_all_of_a_call_is_one_complaint():
    told = SHAPES.complaint(["a purpel star", "red circle", *(f"a star {'red ' * n}" for n in range(9))])
    assert told.count("not trained") == 1
    assert "'purpel' (nearest: 'purple')" in told and "'red circle'" in told and "and 4 more" in told
    assert "a|an [small|large] COLOUR SHAPE [above|below|to the left of|to the right of a|an" in told
    assert "SHAPE is circle, square" in told


@pytest.mark.parametrize(
    "text, style, said",
    [
        ("(a red circle:1.3)", "plain", ["(a red circle:1.3)"]),
        ("(a red circle:1.3) BREAK a [green] square", "a1111", ["a red circle", "a green square"]),
        ("a ((red)) circle", "comfy", ["a red circle"]),
        (r"a red circle \(", "a1111", ["a red circle ("]),
    ],
)
def test_a_style_s_signs_are_no_words(text, style, said):
    assert [" ".join(one.split()) for one in sentences(text, style)] == said


def test_words_alone():
    """A model without an order of its own: any of its words in any order."""
    read = Grammar.read({"words": {"THINGS": ["oak", "old elm"]}, "example": "old oak"}, "x")
    assert read.complaint(["elm oak", "oak old oak"]) is None
    assert "'birch'" in read.complaint(["elm birch"]) and "elm, oak, old" in read.complaint(["birch"])


def test_a_hostile_grammar_judges_as_quickly():
    """What would take a pattern 2^40 steps: forty parts that may each be left out, and a text that fits none."""
    read = Grammar.read({"words": {"A": ["a", "a a"]}, "sentence": [["A"]] * 40 + ["b"], "example": "a b"}, "x")
    assert not read.holds("a " * 60) and read.holds("a " * 60 + "b") and not read.holds("a " * 81 + "b")


GOOD = {"words": {"COLOUR": ["red"]}, "sentence": ["a", "COLOUR"], "example": "a red"}
DEEP: list = []
for _ in range(50):
    DEEP = [DEEP, "a"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"words": None}, "words missing"),
        ({"words": ["red"]}, "words must be lists of words by name"),
        ({"words": {}}, "words must be lists of words by name"),
        ({"words": {"COLOUR": "red"}}, "words: COLOUR must be a list"),
        ({"words": {"COLOUR": [1]}}, "words: COLOUR must be a list of texts"),
        ({"words": {"COLOUR": []}}, "words: COLOUR must be a list of words"),
        ({"words": {"COLOUR": [" "]}}, "words: COLOUR must be a list of words"),
        ({"words": {"COLOUR": ["red"] * 10_001}}, "at most 10000 words"),
        ({"sentence": "a COLOUR SHAPE"}, "sentence must be a list"),
        ({"sentence": ["a", 3]}, "sentence must be a list"),
        ({"sentence": ["a", ""]}, "sentence must be of words"),
        ({"sentence": ["a", {"b": 1}]}, "sentence must be a list"),
        ({"sentence": DEEP}, "at most 8 deep"),
        ({"sentence": [["a"]] * 201}, "at most 200 parts"),
        ({"example": None}, "example missing"),
        ({"example": "a cat"}, "example must be a sentence of this very grammar"),
        ({"example": "red a"}, "example must be a sentence of this very grammar"),
        ({"example": ["a red circle"]}, "example must be a short text"),
    ],
)
def test_doors(change, message):
    Grammar.read(GOOD, "x")
    with pytest.raises(ConfigError, match=f"^tokenizer/grammar.json: .*{message}"):
        Grammar.read({**GOOD, **change}, "tokenizer/grammar.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "red", "COLOUR", "", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["COLOUR", "a"]), inner, max_size=2),
    max_leaves=12,
)


@given(st.fixed_dictionaries({}, optional={name: JSON for name in ("words", "sentence", "example")}))
@settings(max_examples=200, deadline=None)
def test_anything_else_is_refused_or_judges(values):
    try:
        read = Grammar.read({**GOOD, **values}, "x")
    except ConfigError:
        return
    assert read.complaint([read.example, ""]) is None and isinstance(read.complaint(["a red a red", "zebra"]), str)


# ---------------------------------------------------------------------- beside a model

KNOWS = {"words": {"COLOUR": ["red", "blue"]}, "sentence": ["a", "COLOUR", "circle"], "example": "a red circle"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of random weights that knows `KNOWS`."""
    folder = make_checkpoint(tmp_path_factory.mktemp("grammar") / "small")
    (folder / "tokenizer" / "grammar.json").write_text(json.dumps(KNOWS))
    return sdjax.load(folder, compilation_cache=False)


class Asked(Exception):
    """All was asked, and a network would run now."""


@pytest.fixture
def said(small, monkeypatch):
    """The warnings of a call of `generate`, which then runs no network."""

    def sample(*_):
        raise Asked

    def call(*args, **kwargs) -> list[warnings.WarningMessage]:
        with pytest.raises(Asked):
            small.generate(*args, steps=4, **kwargs)

    monkeypatch.setattr("sdjax.sampling.run.sample", sample)
    return lambda *args, **kwargs: complaints(call, *args, **kwargs)


def test_one_warning_at_the_users_own_line(said):
    everything = np.full((16, 16), 255, np.uint8)
    [told] = said(["a red circle", "circle"], ["", "ugly"], regions=[("a red", everything)])
    assert told.filename == __file__ and told.category is UserWarning
    assert str(told.message).startswith("small was not trained on the word 'ugly' nor on sentences like ")
    assert "'a red'" in str(told.message) and "'circle'" in str(told.message)


def test_what_is_known_is_said_nothing_of(said):
    assert said(["a red circle", ""], "a blue circle") == said("a red circle") == []


def test_no_warning_beside_an_error(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="guidance_rescale"):
            small.generate("a cat", guidance_rescale=7)


@pytest.mark.parametrize("name", ["encode_prompt", "conditions"])
def test_a_text_encoded_alone(small, name):
    [told] = complaints(getattr(small, name), ["a red circle", "a green circle"])
    assert told.filename == __file__ and "'green'" in str(told.message)
    assert complaints(getattr(small, name), ["a red circle", ""]) == []


def test_signs_of_a1111_are_no_words(said):
    known = "(a red circle:1.3) BREAK a [red|blue] [circle] AND a [blue:red:0.5] circle :0.8"
    assert said(known, prompt_style="a1111") == []
    [told] = said(known.replace("blue:", "green:"), prompt_style="a1111")
    assert "'green'" in str(told.message) and "'red'" not in str(told.message)


def test_it_goes_where_the_model_goes(small, tmp_path):
    small.save(tmp_path / "copy")
    again = sdjax.load(tmp_path / "copy", compilation_cache=False)
    [told] = complaints(again.encode_prompt, ["a red square"])
    assert "'square'" in str(told.message)


def test_a_model_without_one_is_told_anything(tiny_checkpoint):
    sd = sdjax.load(tiny_checkpoint, compilation_cache=False)
    assert complaints(sd.encode_prompt, ["an ant"]) == []


@pytest.mark.parametrize("text", ["[]", "{", '{"words": {}}', "\udcff"])
def test_a_broken_one_is_named(text, tmp_path):
    folder = make_checkpoint(tmp_path / "small")
    (folder / "tokenizer" / "grammar.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((ConfigError, sdjax.CheckpointError), match=r"small.tokenizer.grammar\.json"):
        sdjax.load(folder, compilation_cache=False)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_have_it(name):
    assert json.loads(open_shipped(name).tokenizer("tokenizer")["grammar.json"]) == GRAMMAR


def test_a_prompt_that_is_cut_is_told_once_at_the_users_own_line(tiny_checkpoint):
    sd = sdjax.load(tiny_checkpoint, compilation_cache=False)
    [told] = complaints(sd.encode_prompt, ["a red circle " * 40] * 2)
    assert "cut" in str(told.message) and told.filename == __file__
