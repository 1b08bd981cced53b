"""What the text encoder is taught: a token of every word, the places of the picture at the end, codes that add up."""

import numpy as np
import pytest

from experiments.shapes import meanings, models, train_text, world
from sdjax.model.builtin import ASSETS, SHAPES
from sdjax.nn.clip import ClipTextEncoder
from sdjax.text.tokens import Tokenizer

LONGEST = "a large red circle to the left of a small blue square on a green background"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ASSETS / SHAPES / "tokenizer")


def slots(caption: str) -> dict[str, meanings.Meaning]:
    told = meanings.token_meanings(world.parse_caption(caption))[-len(meanings.SLOTS) :]
    return dict(zip(meanings.SLOTS, told, strict=True))


def test_every_word_has_the_meaning_of_its_token(tokenizer):
    told = meanings.token_meanings(world.parse_caption(LONGEST))
    assert len(told) == models.MAX_LENGTH
    words = dict(zip(tokenizer.tokens([LONGEST])[0].tolist(), told, strict=True))
    assert words[tokenizer.pieces("circle")[0]] == ("first", "red", "circle", "large")
    assert words[tokenizer.pieces("blue")[0]] == ("second", "blue", None, "small")
    assert words[tokenizer.pieces("green")[0]] == words[tokenizer.pieces("background")[0]]
    assert words[tokenizer.pieces("background")[0]] == ("ground", "green", None, None)
    assert words[tokenizer.pieces("left")[0]] == words[tokenizer.bos] == ("other", None, None, None)


def test_no_caption_reaches_the_slots(tokenizer):
    longest = tokenizer.pieces(LONGEST)
    assert len(longest) + 2 <= models.MAX_LENGTH - len(meanings.SLOTS)
    scenes = (world.sample_scene(np.random.default_rng(i), pairs="any") for i in range(300))
    assert max(len(tokenizer.pieces(scene.caption())) for scene in scenes) <= len(longest)


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [("above", "top", "bottom"), ("below", "bottom", "top"), ("to the left of", "left", "right"),
     ("to the right of", "right", "left")],
)  # fmt: skip
def test_the_slots_say_what_stands_where(relation, first, second):
    told = slots(f"a red circle {relation} a small blue star")
    assert told[first] == (first, "red", "circle", None)
    assert told[second] == (second, "blue", "star", "small")
    assert all(told[slot] == (slot, None, None, None) for slot in meanings.SLOTS if slot not in (first, second))


def test_one_object_is_in_the_centre():
    told = slots("a pink heart on a black background")
    assert told["centre"] == ("centre", "pink", "heart", None) and told["ground"] == ("ground", "black", None, None)
    assert told["top"] == ("top", None, None, None)


def test_codes_have_one_length_and_read_back():
    scenes = [world.parse_caption(LONGEST), world.parse_caption("a red ring"), None]
    made = meanings.codes(scenes)
    assert made.shape == (3, models.MAX_LENGTH, models.TEXT_WIDTH)
    np.testing.assert_allclose(np.square(made).sum(-1), models.TEXT_WIDTH, rtol=1e-5)
    for scene, row in zip(scenes, meanings.read(made), strict=True):
        read = [tuple(names[i] for names, i in zip(meanings.WORDS.values(), token, strict=True)) for token in row]
        assert read == meanings.token_meanings(scene)


def test_an_unseen_pair_is_the_sum_of_what_is_seen():
    """Code(purple star) = code(purple ring) + code(red star) - code(red ring)."""
    captions = ("a purple star", "a purple ring", "a red star", "a red ring")
    star, *others = meanings.codes([world.parse_caption(caption) for caption in captions])
    np.testing.assert_allclose(star, others[0] + others[1] - others[2], atol=1e-6)


def test_batches_are_a_function_of_the_step_and_hold_no_unseen_pair(tokenizer):
    first, again = (train_text.captions(3, 200, tokenizer, seed=0) for _ in range(2))
    for name in ("ids", "codes"):
        np.testing.assert_array_equal(first[name], again[name])
    told = meanings.read(first["codes"]).reshape(-1, 4)
    colours, shapes = meanings.WORDS["colour"], meanings.WORDS["shape"]
    assert not {(colours[c], shapes[s]) for _, c, s, _ in told} & world.UNSEEN


def test_what_is_read_right_is_counted(tokenizer):
    encoder = ClipTextEncoder(models.text_config(tokenizer.size))
    params = train_text.init_params(tokenizer.size, 0)
    assert train_text.right(encoder, params, tokenizer, "seen", 50) == 0.0
