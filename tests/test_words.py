"""New words in prompts: which places of which rows their vectors take, in each style; and words that are none."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text import Tokenizer, words
from sdjax.text.prompts import STYLES, chunks
from sdjax.text.vocabulary import clip_tokenizer_files
from tests.golden.make_tokens import write_tokenizer

ROOM = 75


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return Tokenizer.read(clip_tokenizer_files("<|endoftext|>"), "clip")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", "words"))


def shown(row, tokenizer) -> list:
    """A row without BOS, EOS and padding: ids, and the vectors of new words as "name.i"."""
    at = dict(row.vectors)
    whole = [f"{at[i].word}.{at[i].number}" if i in at else one for i, one in enumerate(row.ids)]
    return whole[1 : whole.index(tokenizer.eos)]


def laid(text, tokenizer, style, new) -> list[list]:
    return [shown(row, tokenizer) for row in chunks(text, tokenizer, style, new)]


TWO = ("<cat>.0", "<cat>.1")


@pytest.mark.parametrize(
    ("style", "text", "parts"),
    [
        ("plain", "a <cat> on a mat", ("a", *TWO, "on a mat")),
        ("plain", "a<cat>s, <cat>", ("a", *TWO, "s,", *TWO)),
        ("plain", "<cat>", TWO),
        ("plain", "a <Cat>", ("a <cat>",)),  # the very letters
        ("plain", "(<cat>:1.2)", ("(", *TWO, ":1.2)")),
        ("a1111", "a <cat> on a mat", ("a", *TWO, "on a mat")),
        ("a1111", "a <CAT>", ("a", *TWO)),  # the tokens, which have no capitals
        ("a1111", "(<cat>) [<cat>]", (*TWO, *TWO)),
        ("a1111", "a <cat>, on", ("a <cat>, on",)),  # ">," is one token of its own
        ("comfy", "a embedding:<cat> on a mat", ("a", *TWO, "on a mat")),
        ("comfy", "embedding:<cat>, a mat", (*TWO, ", a mat")),
        ("comfy", "embedding:<cat>.safetensors a mat", (*TWO, "a mat")),
        ("comfy", "a\nembedding:<cat>\na mat", ("a", *TWO, "a mat")),
        ("comfy", "a <cat>", ("a <cat>",)),
        ("comfy", "an_embedding:dog a", ("an_embedding:dog a",)),  # no white space before it
    ],
)
def test_a_word_is_found_as_its_style_finds_it(clip, style, text, parts):
    want = [one for part in parts for one in ([part] if part in TWO else clip.pieces(part))]
    assert laid(text, clip, style, {"<cat>": 2}) == [want]


def test_of_two_words_that_begin_at_one_place_the_longer_is_found(clip):
    new = {"a1": 1, "a1 b": 1, "b": 1}
    for style in ("plain", "a1111"):
        assert laid("a1 b b a1", clip, style, new) == [["a1 b.0", "b.0", "a1.0"]]
    assert laid("red cat dog", clip, "a1111", {"red": 1, "cat dog": 2}) == [["red.0", "cat dog.0", "cat dog.1"]]


def test_a1111_finds_tokens_and_not_letters(clip):
    """ "restyle" is the tokens "re" and "style", and has the word in it there too; "stylish" has not."""
    new, stylish, restyle = {"style": 1}, clip.pieces("stylish"), clip.pieces("restyle")
    assert laid("style stylish restyle", clip, "a1111", new) == [["style.0", *stylish, restyle[0], "style.0"]]
    assert [restyle[1]] == clip.pieces("style")


def test_vectors_are_weighed_like_tokens(clip):
    (row,) = chunks("a (big cat:1.5) mat", clip, "a1111", {"cat": 2})
    assert row.weights[1:6] == (1.0, 1.5, 1.5, 1.5, 1.0) and [place for place, _ in row.vectors] == [3, 4]
    (row,) = chunks("a (embedding:cat:0.5) mat", clip, "comfy", {"cat": 2})
    assert row.weights[1:5] == (1.0, 0.5, 0.5, 1.0)


def filled(count: int) -> str:
    return " ".join(["red"] * count)


def test_a1111_tears_no_word(clip):
    red = clip.pieces("red")
    assert laid(f"{filled(73)} w", clip, "a1111", {"w": 2}) == [[*red * 73, "w.0", "w.1"]]
    rows = chunks(f"{filled(74)} w red", clip, "a1111", {"w": 2})
    assert laid(f"{filled(74)} w red", clip, "a1111", {"w": 2}) == [red * 74, ["w.0", "w.1", *red]]
    assert rows[0].ids[75] == clip.eos and len(rows[0].ids) == 77 and not rows[0].vectors
    whole = [f"w.{i}" for i in range(ROOM)]
    assert laid("red w red", clip, "a1111", {"w": ROOM}) == [red, whole, red]
    assert laid("w BREAK w", clip, "a1111", {"w": 1}) == [["w.0"], ["w.0"]]


def test_a1111_takes_a_word_along_behind_a_comma(clip):
    """A1111 leaves the vectors of a word that it moves in the row before; here they are where the word is."""
    red, comma = clip.pieces("red"), clip.pieces(",")
    text = f"{filled(65)}, w {filled(9)}"
    assert laid(text, clip, "a1111", {"w": 2}) == [[*red * 65, *comma], ["w.0", "w.1", *red * 9]]


def test_comfy_keeps_fewer_than_eight_together(clip):
    red = clip.pieces("red")
    seven, nine = [f"w.{i}" for i in range(7)], [f"w.{i}" for i in range(9)]
    assert laid(f"{filled(70)} embedding:w", clip, "comfy", {"w": 7}) == [red * 70, seven]
    assert laid(f"{filled(70)} embedding:w", clip, "comfy", {"w": 9}) == [[*red * 70, *nine[:5]], nine[5:]]


def test_plain_is_cut_with_what_is_lost(clip):
    with pytest.warns(UserWarning, match=r"the prompt has 78 tokens and the text encoder sees 75; cut: '<w> a'$"):
        assert laid(f"{filled(74)} <w> a", clip, "plain", {"<w>": 3}) == [[*clip.pieces("red") * 74, "<w>.0"]]
    with pytest.warns(UserWarning, match=r"cut: 'red blue'$"):
        laid(f"<w> {filled(73)} blue", clip, "plain", {"<w>": 3})


def test_what_a_vector_covers_neither_begins_nor_ends_a_text(clip, small):
    for tokenizer in (clip, small):
        for row in chunks("<w> a <w>", tokenizer, "plain", {"<w>": 2}):
            assert row.ids.count(tokenizer.bos) == 1 and row.ids.index(tokenizer.eos) == 6
            assert {row.ids[place] for place, _ in row.vectors} & {tokenizer.bos, tokenizer.eos} == set()


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab<>w,:() [].\n1|", max_size=40), count=st.integers(1, 75), style=st.sampled_from(STYLES))
def test_whatever_is_written_all_vectors_of_a_word_are_there_in_order(clip, text, count, style):
    text = text.replace("w", " embedding:<w> " if style == "comfy" else "<w>")[:120]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rows = chunks(text, clip, style, {"<w>": count})
        except ValueError as error:
            assert "chunks" in str(error) or "does not hold" in str(error)
            return
    placed = [vector.number for row in rows for _, vector in row.vectors]
    whole = list(range(count)) * (1 + len(placed) // count)
    assert placed == whole[: len(placed)] and (style == "plain" or len(placed) % count == 0)
    assert {len(row.ids) for row in rows} == {len(row.weights) for row in rows} == {clip.max_length}


# ---------------------------------------------------------------------- words that are none


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"": 1}, "embeddings must be named by words"),
        ({" \n": 1}, "embeddings must be named by words"),
        ({" cat": 1}, "embeddings must be named by words"),
        ({3: 1}, "embeddings must be named by words"),
        ({"<|endoftext|>": 1}, "is no word to this tokenizer"),
        ({"<x>": 76}, "has 76 vectors, and a row of this text encoder holds 75"),
    ],
)
def test_a_name_that_no_prompt_can_have(clip, style, new, message):
    with pytest.raises(ValueError, match=message):
        words.check(new, clip, style)


def test_a_word_that_the_model_knows(clip):
    with pytest.raises(ValueError, match=r"'cat' is a word that the model knows.*choose another such as \"<cat>\""):
        words.check({"cat": 1}, clip, "plain")
    with pytest.warns(UserWarning, match="'cat' is a word that the model knows"):
        words.check({"cat": 1}, clip, "a1111")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words.check({"cat": 1}, clip, "comfy")
        words.check({"<cat>": 1, "easynegative": 8, "my style": 2}, clip, "a1111")
        words.check({"<cat>": 1, "<dog>": 75}, clip, "plain")


def test_a_name_twice(clip):
    with pytest.raises(ValueError, match="'mycat' and 'MyCat' are the same tokens, so the name is used twice"):
        words.check({"mycat": 1, "MyCat": 1}, clip, "a1111")
    words.check({"mycat": 1, "MyCat": 1}, clip, "plain")


def test_comfys_names_end_at_white_space_and_must_be_known(clip):
    with pytest.raises(ValueError, match=r"'my style' has white space, where ComfyUI's embedding:name ends"):
        words.check({"my style": 1}, clip, "comfy")
    with pytest.raises(ValueError, match=r"'embedding:cta', which .* does not hold; nearest: 'cat'"):
        chunks("a embedding:cta", clip, "comfy", {"cat": 1})
    assert chunks("a embedding:cta", clip, "comfy")[0].vectors == ()  # where there are none it is text, as ever


@pytest.mark.parametrize(
    ("text", "style", "around"),
    [
        ("a <w> on <w>", "plain", ["a ", " on ", ""]),
        ("a <W>", "plain", ["a <W>"]),
        ("a <W>", "a1111", ["a ", ""]),
        ("a embedding:<w>, b", "comfy", ["a ", ", b"]),
    ],
)
def test_what_lies_between_words(text, style, around):
    assert words.fragments(text, ["<w>"], style) == around
    assert words.fragments(text, [], style) == [text]
