"""Which pictures a step has, how they are cut and what is said of them: the mathematics of sdjax.train.data."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sdjax.text.tokens import Tokenizer, write_word_tokenizer
from sdjax.train.data import buckets
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crops, cover
from sdjax.train.data.order import Order

# Buckets -----------


def test_published_buckets():
    """TRAINING.md, golden fact 10: counts from the programs' own code."""
    counts = {"novelai": buckets.novelai(), "512": buckets.kohya(512, most=1024), "768": buckets.kohya(768, most=1024)}
    counts |= {
        "1024": buckets.kohya(1024, most=1024),
        "2048": buckets.kohya(1024),
        "33": buckets.kohya(1024, least=512),
    }
    found = {name: len(one.sizes) for name, one in counts.items()}
    assert found == {"novelai": 19, "512": 17, "768": 19, "1024": 25, "2048": 41, "33": 33}
    sdxl = buckets.sdxl()
    assert len(sdxl.sizes) == 40 and {(2048, 512), (512, 2048), (1024, 1024), (832, 1216), (1600, 640)} <= set(
        sdxl.sizes
    )
    assert (1664, 640) not in sdxl.sizes and (640, 1600) in sdxl.sizes and (1472, 704) in sdxl.sizes
    assert all(0.9 * 2**20 < high * wide <= 1.05 * 2**20 for high, wide in sdxl.sizes)


@pytest.mark.parametrize(
    "picture, bucket",
    [((1920, 1080), (832, 448)), ((1000, 1500), (512, 768)), ((640, 480), (704, 512)), ((3000, 1000), (1024, 320))],
)
def test_novelais_choices(picture, bucket):
    assert buckets.novelai().of(picture[1], picture[0])[::-1] == bucket


def test_kohyas_choice_and_the_scaled_size():
    size = buckets.kohya(1024).of(1080, 1920)
    assert size == (768, 1344) and cover((1080, 1920), size) == (768, 1365)


def test_a_picture_and_the_same_on_its_side_are_treated_alike():
    symmetric = buckets.novelai()
    rng = np.random.default_rng(0)
    for high, wide in rng.integers(50, 4000, (200, 2)).tolist():
        assert symmetric.of(high, wide) == symmetric.of(wide, high)[::-1]
    two = Buckets(((100, 200), (100, 110)))  # 1.5 is nearer to 1.1 as a difference, to 2 as a ratio
    assert two.of(100, 152) == (100, 200)
    assert Buckets(((64, 64), (128, 128))).of(50, 50) == (128, 128)  # of equal ones the largest


def test_buckets_that_are_none():
    with pytest.raises(ValueError, match="no buckets"):
        Buckets(())
    with pytest.raises(ValueError, match=r"\(height, width\) in whole pixels"):
        Buckets(((0, 64),))
    with pytest.raises(ValueError, match="100 x 64 has a side that is no multiple of 8"):
        Buckets(((64, 100),)).check(8)


# Crops -----------


def coordinates(height: int, width: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("original, target", [((150, 200), (150, 120)), ((200, 90), (64, 90)), ((64, 64), (64, 64))])
def test_what_the_model_is_told_is_what_it_sees(original, target):
    """Nothing is scaled here, so every pixel says where in the file it stood."""
    seen = set()
    for turn in range(20):
        crop = Crops(random=True, flip=True).crop(original, target, turn, (0, 7))
        shown = np.asarray(crop(coordinates(*original))).astype(int)
        assert shown.shape == (*target, 3)
        height, width, top, left, *batch = crop.time_ids
        assert (height, width) == original and tuple(batch) == target
        columns = left + np.arange(target[1])
        columns = width - 1 - columns if crop.flip else columns  # in the flipped picture the last column is the first
        np.testing.assert_array_equal(shown[..., 0], np.broadcast_to(columns, target))
        np.testing.assert_array_equal(shown[..., 1], np.broadcast_to(top + np.arange(target[0])[:, None], target))
        seen.add((crop.flip, top, left))
    room = (original[0] - target[0] + 1) * (original[1] - target[1] + 1)
    assert len(seen) >= (10 if room > 10 else 2)


def test_a_crop_of_a_scaled_picture():
    """Half the size: column j of the scaled picture shows columns 2 j and 2 j + 1, so 2 j + 1/2."""
    for turn in range(8):
        crop = Crops(random=True, flip=True).crop((200, 240), (100, 64), turn, (1, 2))
        assert crop.scaled == (100, 120) and 0 <= crop.left <= 56 and crop.top == 0
        row = np.asarray(crop(coordinates(200, 240)))[50, 4:-4, 0].astype(float)
        columns = 2 * (crop.left + np.arange(64)[4:-4]) + 0.5
        columns = 239 - columns if crop.flip else columns
        inner = (columns > 12) & (columns < 227)
        np.testing.assert_allclose(row[inner], columns[inner], atol=1)


def test_variants():
    centre = Crops(flip=True)
    crops = [centre.crop((100, 200), (64, 64), turn, (3, 4)) for turn in range(6)]
    assert centre.count == 2 and [one.left for one in crops] == [32] * 6
    assert [one.flip for one in crops] in ([True, False] * 3, [False, True] * 3)
    begun = {centre.crop((100, 200), (64, 64), 0, (3, place)).flip for place in range(20)}
    assert begun == {True, False}
    few = Crops(random=True, variants=3)
    lefts = [few.crop((100, 200), (64, 64), turn, (3, 4)).left for turn in range(9)]
    assert few.count == 3 and lefts[:3] == lefts[3:6] == lefts[6:] and len(set(lefts)) == 3
    assert Crops(random=True).count is None and Crops().count == 1
    with pytest.raises(ValueError, match="variants must be at least 1"):
        Crops(variants=0)


def test_random_crops_go_everywhere():
    lefts = Counter(Crops(random=True).crop((10, 13), (10, 10), turn, (0, 0)).left for turn in range(400))
    assert sorted(lefts) == [0, 1, 2, 3] and min(lefts.values()) > 60


# Captions -----------


def test_a_caption_is_drawn_anew_in_every_turn():
    rule = Captions(dropout=0.25, shuffle=True, keep=1, prefix="sks, ")
    texts = [rule.text(["a, b, c,d", "one"], (0, 3, 5, turn)) for turn in range(2000)]
    left_out = texts.count(None) / len(texts)
    assert abs(left_out - 0.25) < 0.04
    counts = Counter(texts)
    tags = {f"sks, a, {', '.join(rest)}" for rest in ("bcd", "bdc", "cbd", "cdb", "dbc", "dcb")}
    assert set(counts) == tags | {"sks, one", None}
    assert abs(counts["sks, one"] - 750) < 100 and all(abs(counts[one] - 125) < 50 for one in tags)
    assert texts == [rule.text(["a, b, c,d", "one"], (0, 3, 5, turn)) for turn in range(2000)]


def test_captions_as_they_are():
    assert Captions(dropout=0).text(["a, b"], (0, 0)) == "a, b"
    assert Captions(dropout=1).text(["a, b"], (0, 0)) is None
    assert sorted(Captions(dropout=0, shuffle=True, separator=" ").text(["x y"], (0, 0)).split(" ")) == ["x", "y"]
    with pytest.raises(ValueError, match="dropout is a part"):
        Captions(dropout=10)


def test_tokens_are_the_tokenizers_own(tmp_path):
    write_word_tokenizer(tmp_path, ["red", "circle"], 6)
    tokenizer = Tokenizer.load(tmp_path)
    tokens = Tokens({"text_encoder": tokenizer})
    texts = ["red circle", "", "Red", "red red red red"]
    np.testing.assert_array_equal(tokens(texts)["ids"]["text_encoder"], tokenizer.tokens(texts))
    long = ["red " * 9, "red"]
    with pytest.warns(UserWarning, match="1 of 2 captions have more than the 4 tokens that text_encoder sees"):
        tokens.check(long)
    with pytest.warns(UserWarning, match="cut"):
        cut = tokenizer.tokens(long)
    np.testing.assert_array_equal(tokens(long)["ids"]["text_encoder"], cut)


# Order -----------

CASES = [((8, 4, 12), 4), ((7, 3, 1), 4), ((5,), 8), ((1, 1, 1), 2), ((30, 17, 2, 9), 5)]


def order(counts: tuple[int, ...], size: int, seed: int = 0) -> Order:
    """Buckets of so many pictures, numbered through."""
    ends = np.cumsum(counts)
    return Order(tuple(np.arange(end - count, end) for count, end in zip(counts, ends, strict=True)), size, seed)


@pytest.mark.parametrize("counts, size", CASES)
def test_every_picture_comes_once_in_each_turn(counts, size):
    """All that was given by the end of epoch e: whole turns, and the beginning of one more, by their first batches."""
    made = order(counts, size)
    for epochs in (1, 2, 7):
        given = Counter()
        for step in range(made.begins(epochs)):
            places = made.places(step)
            assert len(places.numbers) == size and set(places.numbers) <= set(made.buckets[places.bucket])
            given.update(zip(places.numbers.tolist(), places.turns.tolist(), strict=True))
        assert set(given.values()) <= {1}  # no picture twice in one turn
        for k, own in enumerate(made.buckets):
            total = epochs * len(own) // size * size
            turns = Counter(turn for number, turn in given if number in own)
            whole, rest = divmod(total, len(own))
            assert turns == Counter({turn: len(own) for turn in range(whole)} | ({whole: rest} if rest else {})), k


def test_an_epoch_has_every_picture_once_where_batches_divide_it():
    made = order((8, 4, 12), 4)
    passes = []
    for epoch in range(3):
        steps = range(made.begins(epoch), made.begins(epoch + 1))
        assert len(steps) == 6 and {made.epoch(step) for step in steps} == {epoch}
        numbers = np.concatenate([made.places(step).numbers for step in steps])
        assert sorted(numbers) == list(range(24))
        passes.append(numbers.tolist())
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("counts, size", CASES)
def test_the_epoch_of_a_step(counts, size):
    made = order(counts, size)
    begins = [made.begins(epoch) for epoch in range(60)]
    for step in range(begins[-1]):
        assert made.epoch(step) == np.searchsorted(begins, step, side="right") - 1


def test_far_steps_cost_no_more_than_near_ones():
    made = order((7, 3, 1), 4)
    assert made.epoch(made.begins(10**12) - 1) == 10**12 - 1
    assert len(made.places(10**12).numbers) == 4


def test_an_order_is_its_seeds():
    def first(seed):
        made = order((30, 17), 5, seed)
        return [made.places(step).numbers.tolist() for step in range(20)]

    assert first(3) == first(3) != first(4)
    with pytest.raises(ValueError, match="no step -1"):
        order((3,), 2).places(-1)


def test_every_batch_is_of_one_bucket_and_buckets_come_mixed():
    made = order((40, 40), 4)
    buckets_of = [made.places(step).bucket for step in range(20)]
    assert Counter(buckets_of) == {0: 10, 1: 10} and buckets_of != sorted(buckets_of)
