"""Prompts: what A1111's and ComfyUI's own code makes of them (golden, published examples), limits, bad input."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text import Tokenizer, emphasis
from sdjax.text.editing import MOST_PROMPTS_JOINED
from sdjax.text.prompts import MAX_CHUNKS, STYLES, Chunk, chunks, parts, timeline, weigh
from tests.golden.make_prompts import EVALUATIONS, KINDS
from tests.golden.make_tokens import write_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text("utf-8"))
SIGNS = st.text("()[]:|\\ .,1ab\nBREAKND", max_size=60)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: Tokenizer.load(write_tokenizer(folder / kind, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def tokenizer(tokenizers) -> Tokenizer:
    return tokenizers["words"]


def spelled(runs: list) -> list:
    return [value for value, count in runs for _ in range(count)]


@pytest.mark.parametrize("style", ["a1111", "comfy"])
def test_weights_are_the_peers(style):
    read = getattr(emphasis, style)
    for case in GOLDEN["prompts"]:
        assert list(map(list, read(case["prompt"]))) == case[style], case["prompt"]


def test_parts_are_the_peers():
    for case in GOLDEN["prompts"]:
        assert list(map(list, parts(case["prompt"], "a1111"))) == case["parts"], case["prompt"]


def test_edits_are_the_peers():
    for case in GOLDEN["edits"]:
        assert timeline(case["prompt"], EVALUATIONS, "a1111") == spelled(case["texts"]), case["prompt"]


@pytest.mark.parametrize("style", ["a1111", "comfy"])
def test_rows_are_the_peers(tokenizers, style):
    for case in GOLDEN["rows"]:
        theirs = [Chunk(tuple(spelled(ids)), tuple(map(float, spelled(w)))) for ids, w in case[style]]
        assert chunks(case["prompt"], tokenizers[case["kind"]], style) == theirs, case["prompt"]


@pytest.mark.parametrize(
    ("prompt", "segments"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *(("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1)),
                *(("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)),
            ],
        ),
    ],
)
def test_a1111s_published_examples_of_emphasis(prompt, segments):
    assert emphasis.a1111(prompt) == segments


@pytest.mark.parametrize(
    ("prompt", "segments"),
    [
        ("(foo)(bar)", [("foo", 1.1), ("bar", 1.1)]),
        ("((foo):1.1)", [("foo", 1.21)]),
        ("((foo:1.1))", [("foo", 1.1)]),
        ("((foo:1.0):0.0)", [("foo", 1.0)]),
        (
            "foo ((((lol (cat:666) attack:100)))) baz",
            [("foo ", 1.0), ("lol ", 100.0), ("cat", 666.0), (" attack", 100.0), (" baz", 1.0)],
        ),
        (
            "foo ((((lol (cat:666) attack):100))) baz",
            [("foo ", 1.0), ("lol ", 110.0), ("cat", 666.0), (" attack", 110.0), (" baz", 1.0)],
        ),
    ],
)
def test_comfyuis_published_examples(prompt, segments):
    found = emphasis.comfy(prompt)
    assert [text for text, _ in found] == [text for text, _ in segments]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in segments])


def published(schedule: list) -> list[str]:
    """Ten evaluations of A1111's [[last evaluation, text], ...], looked up as reconstruct_cond_batch does."""
    return [next(text for end, text in schedule if number <= end) for number in range(10)]


@pytest.mark.parametrize(
    ("prompt", "schedule"),
    [
        ("test", [[10, "test"]]),
        ("a [b:3]", [[3, "a "], [10, "a b"]]),
        ("a [b: 3]", [[3, "a "], [10, "a b"]]),
        ("a [[[b]]:2]", [[2, "a "], [10, "a [[b]]"]]),
        ("[(a:2):3]", [[3, ""], [10, "(a:2)"]]),
        ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
        ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
        ("a [unbalanced", [[10, "a [unbalanced"]]),
        ("a [b:.5] c", [[5, "a  c"], [10, "a b c"]]),
        ("((a][:b:c [d:3]", [[3, "((a][:b:c "], [10, "((a][:b:c d"]]),
        ("[a|(b:1.1)]", [[i + 1, ("a", "(b:1.1)")[i % 2]] for i in range(10)]),
        ("[fe|]male", [[i + 1, ("female", "male")[i % 2]] for i in range(10)]),
        ("[fe|||]male", [[i + 1, "male" if i % 4 else "female"] for i in range(10)]),
    ],
)
def test_a1111s_published_examples_of_edits(prompt, schedule):
    assert timeline(prompt, 10, "a1111") == published(schedule)


def test_the_first_text_has_one_evaluation_more_than_said():
    assert timeline("[a:b:2]", 5, "a1111") == ["a", "a", "a", "b", "b"]
    assert timeline("[a|b]", 5, "a1111") == ["a", "a", "b", "a", "b"]
    assert timeline("[a:b:0.5]", 1, "a1111") == ["b"] and timeline("[a:b:2]", 0, "a1111") == []


@pytest.mark.parametrize(
    ("prompt", "first", "last"),
    [
        ("[a:b:2]]", "a]", "b]"),  # lark 1.1.2 gives this, or the prompt as it stands, by its hash seed
        ("x:[a:2]:y", "x::y", "x:a:y"),
        ("[c:(d:e:f):[a:b:2]", "[c:(d:e:f):a", "[c:(d:e:f):b"),
        ("[a:b:2] x|y", "[a:b:2] x|y", "[a:b:2] x|y"),
        ("[a:b:2] [x|y", "[a:b:2] [x|y", "[a:b:2] [x|y"),
        ("[a:b:2] \\", "[a:b:2] \\", "[a:b:2] \\"),
        ("[a:b:1e999]", "a", "a"),  # on which A1111 fails
    ],
)
def test_what_fits_nowhere_is_text(prompt, first, last):
    found = timeline(prompt, 5, "a1111")
    assert (found[0], found[-1]) == (first, last)


def test_parts():
    found = parts("a cat AND a dog :1.2 AND ANDY: -.5\n", "a1111")
    assert found == [("a cat", 1.0), (" a dog", 1.2), (" ANDY", -0.5)]


@pytest.mark.parametrize("style", ["plain", "comfy"])
def test_other_styles_neither_edit_nor_join(style):
    text = "[a:b:0.5] AND [c|d] :2"
    assert timeline(text, 3, style) == [text] * 3
    assert parts(text, style) == [(text, 1.0)]


def test_plain_is_the_tokenizers_row(tokenizer):
    text = "(red:1.3) [square] BREAK circle"
    (row,) = chunks(text, tokenizer, "plain")
    assert row.ids == tuple(tokenizer.tokens([text])[0].tolist()) and set(row.weights) == {1.0}
    with pytest.warns(UserWarning, match=r"has 32 tokens and the text encoder sees 30"):
        assert len(chunks("red " * 32, tokenizer, "plain")) == 1


def lengths(rows: list[Chunk], tokenizer: Tokenizer) -> list[int]:
    return [row.ids.index(tokenizer.eos) - 1 for row in rows]


def test_a1111_ends_a_row_at_a_comma_among_its_last_twenty(tokenizer):
    for before, expected in ((9, [30, 10]), (10, [11, 29]), (29, [30, 10])):
        text = "red " * before + ", " + "red " * (39 - before)
        assert lengths(chunks(text, tokenizer, "a1111"), tokenizer) == expected


def test_comfyui_keeps_fewer_than_eight_tokens_together(tokenizer):
    for after, expected in (("red " * 7, [25, 7]), ("red " * 8, [30, 3])):
        rows = chunks("(" + "square " * 25 + ")" + after, tokenizer, "comfy")
        assert lengths(rows, tokenizer) == expected


def test_comfyui_begins_anew_at_an_embeddings_name(tokenizer):
    for after, first in (("a red a a embedding:a", 27), ("a red a a-embedding:a", 30)):
        rows = chunks("(" + "square " * 27 + ")" + after, tokenizer, "comfy")
        assert lengths(rows, tokenizer)[0] == first


@pytest.mark.parametrize("style", STYLES)
def test_the_empty_prompt_is_one_row(tokenizers, style):
    for tokenizer in tokenizers.values():
        (row,) = chunks("", tokenizer, style)
        assert row.ids == (tokenizer.bos, tokenizer.eos, *[tokenizer.pad] * (tokenizer.max_length - 2))


def test_weighing():
    """Two tokens of two features: the peers' formulas by hand."""
    states = np.array([[1, 2], [3, 6]], np.float32)
    empty = np.array([[9, 9], [1, 0]], np.float32)
    weights = (1.0, 2.0)
    np.testing.assert_array_equal(weigh(states, weights, empty, "plain"), states)
    np.testing.assert_array_equal(weigh(states, weights, empty, "comfy"), [[1, 2], [5, 12]])
    scale = 3 / (21 / 4)  # the mean was 12 / 4 and would be 21 / 4
    np.testing.assert_allclose(weigh(states, weights, empty, "a1111"), np.array([[1, 2], [6, 12]]) * scale, rtol=1e-6)


def test_a1111_takes_the_mean_over_all_texts_of_an_edit():
    states = np.array([[[1.0, 1]], [[3, 3]]], np.float32)
    found = weigh(states, np.array([[1.0], [2]]), states, "a1111")
    np.testing.assert_allclose(found, np.array([[[1, 1]], [[6, 6]]]) * 2 / 3.5, rtol=1e-6)


def test_bad_input(tokenizer):
    for call in (
        lambda: chunks("a", tokenizer, "a111"),
        lambda: timeline("a", 3, "a111"),
        lambda: parts("a", "a111"),
        lambda: weigh(np.ones((1, 1)), (1.0,), np.ones((1, 1)), "a111"),
    ):
        with pytest.raises(ValueError, match=r"unknown prompt style 'a111'; the nearest is 'a1111'"):
            call()
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        timeline("a", -1, "a1111")
    with pytest.raises(ValueError, match=r"weights of shape \(2,\) do not fit states of shape \(3, 4\)"):
        weigh(np.ones((3, 4)), (1.0, 2.0), np.ones((3, 4)), "comfy")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("“a cat”", '"a cat"'),
        ("it’s", "it's"),
        ("a，b", "a,b"),
        ("\N{LATIN SMALL LIGATURE FI}ne", "fine"),
        ("a &amp; b", "a & b"),
        ("ＡＢＣ", "ABC"),
        ("schÃ¶n", "schön"),
        ("(“red”:1.3) circle", '("red":1.3) circle'),
    ],
)
def test_a1111_cleans_a_text_first(tokenizers, text, same):
    """ftfy, as its tokenizers do; ComfyUI's and diffusers' do not."""
    for tokenizer in tokenizers.values():
        assert chunks(text, tokenizer, "a1111") == chunks(same, tokenizer, "a1111")
        assert all(chunks(text, tokenizer, style) != chunks(same, tokenizer, style) for style in ("plain", "comfy"))


def test_a1111_cleans_behind_the_brackets(tokenizer):
    """Full-width brackets are no emphasis: the prompt is cut at its signs before it is cleaned."""
    assert chunks("（red：1.3）", tokenizer, "a1111") == chunks(r"\(red:1.3\)", tokenizer, "a1111")


def test_only_openclip_takes_a_second_look_at_entities(tokenizers):
    text, once, twice = "&amp;lt; <", "&lt; <", "< <"
    assert chunks(text, tokenizers["sd2"], "a1111") == chunks(twice, tokenizers["sd2"], "a1111")
    assert chunks(text, tokenizers["words"], "a1111") != chunks(once, tokenizers["words"], "a1111")


def test_and_has_a_limit():
    assert len(parts(" AND ".join("a" * MOST_PROMPTS_JOINED), "a1111")) == MOST_PROMPTS_JOINED
    with pytest.raises(ValueError, match="joins 2,000 prompts by AND, and the limit is 16: write some"):
        parts(" AND ".join("a" * 2000), "a1111")


def test_a_long_text_that_changes_has_a_limit():
    """Each evaluation reads it once. One that does not change may be as long as it likes."""
    with pytest.raises(ValueError, match="has 160,000 signs and texts; with so many evaluations the limit is 2,500"):
        timeline("[a|b]" * 32_000, 2000, "a1111")
    assert len(timeline("[a|b]" * 20, 2000, "a1111")) == 2000
    assert len(timeline("(a:1.2)" * 10_000, 2000, "a1111")) == 2000


def test_comfyui_s_long_word_is_cut_into_rows_once(tokenizer):
    """Of 70 tokens in one text each row takes the next 30."""
    rows = chunks("square " * 70, tokenizer, "comfy")
    assert lengths(rows, tokenizer) == [30, 30, 10]


@pytest.mark.parametrize("style", ["a1111", "comfy"])
def test_the_limit(tokenizer, style):
    assert len(chunks("red " * 30 * MAX_CHUNKS, tokenizer, style)) == MAX_CHUNKS
    with pytest.raises(ValueError, match=r"has 481 tokens and takes 17 chunks of 30; the limit is 16 chunks, 480 tok"):
        chunks("red " * (30 * MAX_CHUNKS + 1), tokenizer, style)


@settings(max_examples=300, deadline=None)
@given(text=SIGNS, style=st.sampled_from(STYLES))
def test_no_text_is_refused(tokenizers, text, style):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tokenizer in tokenizers.values():
            for row in chunks(text, tokenizer, style):
                assert len(row.ids) == len(row.weights) == tokenizer.max_length
                assert row.ids[0] == tokenizer.bos and tokenizer.eos in row.ids
    assert all(isinstance(part, str) and np.isfinite(weight) for part, weight in parts(text, style))
    assert len(timeline(text, 4, style)) == 4


@given(SIGNS.filter(lambda text: "[" not in text))
def test_a_text_without_square_brackets_stays_as_it_is(text):
    assert timeline(text, 3, "a1111") == [text] * 3


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "[" * 50_000 + "a" + "]" * 50_000,
        "(" * 50_000 + "a" + ")" * 50_000,
        "[" * 25_000 + "a" + ":3]" * 25_000,
        "[a|" * 25_000 + "b" + "]" * 25_000,
        "(:" + "(" * 30_000 + "a" + ")b" * 30_000,
        "( " * 50_000,
        "\u0301" * 100_000,
        " " * 100_000 + "x",
        "(a:" + "1" * 100_000,
    ],
    ids=lambda text: text[:4] + "..." + text[-4:],
)
def test_deep_and_long_texts_neither_crash_nor_hang(tokenizer, text):
    start = time.process_time()
    timeline(text, 4, "a1111")
    parts(text, "a1111")
    for style in ("a1111", "comfy"):
        try:
            chunks(text, tokenizer, style)
        except ValueError as error:
            assert "shorten it" in str(error)
    assert time.process_time() - start < 20
