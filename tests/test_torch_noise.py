"""Noise as torch draws it, against numbers that others have published; `parity` compares with torch itself."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sdjax.torch_noise import SOURCES, generator, picture_noise
from sdjax.torch_noise.fused import multiply_add
from sdjax.torch_noise.mersenne import gaussian
from sdjax.torch_noise.philox import Philox, scramble

GOLDEN = json.loads((Path(__file__).parent / "golden/torch_noise.json").read_text())
PRINTED = 6e-5  # half of torch's fourth decimal, and what a card's approximate sines differ by
TORCH = SOURCES[1:]


@pytest.mark.parametrize("vector", GOLDEN["philox4x32_10"]["vectors"], ids=lambda v: v["counter"][0])
def test_philox_known_answers(vector):
    counter = [np.array([int(word, 16)], np.uint64) for word in vector["counter"]]
    made = scramble(counter, tuple(int(word, 16) for word in vector["key"]))
    assert [f"{word[0]:08x}" for word in made] == vector["words"]


def test_as_a1111_draws_for_a_card():
    """A1111 computes in float64 what a card, and we, round to float32 twice."""
    made = generator("torch_cuda", GOLDEN["a1111"]["seed"]).randn((3, 4)).reshape(-1)
    np.testing.assert_allclose(made, GOLDEN["a1111"]["values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", GOLDEN["torch_cuda"], ids=lambda case: case["source"].rsplit("/")[-1][:15])
def test_as_cards_have_printed(case):
    """Beyond one wave, too, where the numbers depend on the card."""
    made = Philox(case["seed"], case["wave"]).randn(tuple(case["shape"])).reshape(-1)
    np.testing.assert_allclose(made[:3], case["first"], rtol=0, atol=PRINTED)
    np.testing.assert_allclose(made[len(made) - len(case["last"]) :], case["last"], rtol=0, atol=PRINTED)


def test_as_a_card_has_printed_planes():
    case = GOLDEN["torch_cuda_planes"]
    made = generator("torch_cuda", case["seed"]).randn(tuple(case["shape"]))
    np.testing.assert_allclose(made[0, :, 0, 0], case["values"], rtol=0, atol=PRINTED)


@pytest.mark.parametrize("case", GOLDEN["torch_cpu"]["calls"], ids=lambda case: f"{case['seed']}-{case['shapes']}")
def test_as_torch_has_printed(case):
    """Small tensors and those of 16 numbers and more, and a second call."""
    torch_like = generator("torch_cpu", case["seed"])
    for shape, column in zip(case["shapes"], case["columns"], strict=True):
        np.testing.assert_allclose(torch_like.randn(tuple(shape))[:, 0], column, rtol=0, atol=PRINTED)


def test_what_comes_before_a_picture_is_passed_over_and_not_kept():
    """CASES.md B 14: the numbers of the 40 pictures before, drawn by NumPy's own twister, are those passed over."""
    late = picture_noise("torch_cpu", 7, 40, (8, 8, 4), 0)[0]
    words = np.random.RandomState(7).randint(0, 1 << 32, 41 * 256, np.uint32)[-256:]
    expected = gaussian((words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24))
    np.testing.assert_array_equal(np.moveaxis(late, -1, 0).reshape(-1), expected)
    tracemalloc.start()
    picture_noise("torch_cpu", 7, 100_000, (8, 8, 4), 0)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # 100 MB of words
    tracemalloc.stop()
    with pytest.raises(ValueError, match="picture 4000000000 of a seed comes after .* first_image=67108864 at most"):
        picture_noise("torch_cpu", 7, 4_000_000_000, (8, 8, 4), 0)


def test_one_rounding():
    """a b lies in the middle of two float32, c a little beside it: less than float64 has room for."""
    fine = 2.0**-12
    a = np.float32([1 + fine, 1 + fine, 1 + fine, -1 - fine, 1 + fine])
    b = np.float32([1 + fine, 1 + fine, 1 + 3 * fine, 1 + fine, 1 + fine])
    c = np.float32([2.0**-70, -(2.0**-70), -(2.0**-70), -(2.0**-70), 0.0])
    low = 1 + 2 * fine  # of the two around (1 + fine)^2 = low + 2^-24, and even
    nearest = [low + 2.0**-23, low, 1 + 4 * fine + 2.0**-23, -low - 2.0**-23, low]
    np.testing.assert_array_equal(multiply_add(a, b, c), np.float32(nearest))
    twice = (np.float64(a) * b + c).astype(np.float32)
    assert (twice != np.float32(nearest)).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(("count", "offsets"), [(1, 1), (512, 1), (2048, 1), (2049, 2), (4096, 2), (5000, 3)])
def test_successive_calls_on_a_card(count, offsets):
    """A call takes as many offsets as its threads go round, four numbers each: one for up to four waves."""
    limited, other = Philox(3, wave=512), Philox(3)
    first = limited.randn((count,))
    np.testing.assert_array_equal(first[:512], Philox(3).randn((count,))[:512])
    for _ in range(offsets):
        other.randn((1,))
    np.testing.assert_array_equal(limited.randn((512,)), other.randn((512,)))


@pytest.mark.parametrize("source", TORCH)
def test_generators(source):
    one, again, other = generator(source, 7), generator(source, 7), generator(source, 8)
    first = one.randn((4, 8, 8))
    assert first.dtype == np.float32 and first.shape == (4, 8, 8)
    np.testing.assert_array_equal(first, again.randn((4, 8, 8)))
    assert (first != other.randn((4, 8, 8))).mean() > 0.99
    assert (first != one.randn((4, 8, 8))).mean() > 0.99
    assert one.randn(()).shape == () and one.randn((0, 4)).shape == (0, 4)


def test_what_of_a_seed_counts():
    """The Mersenne Twister is seeded with 32 bits; Philox has a key of 64."""
    low, high = 5, 5 + (1 << 32)
    np.testing.assert_array_equal(generator("torch_cpu", low).randn((16,)), generator("torch_cpu", high).randn((16,)))
    assert (generator("torch_cuda", low).randn((16,)) != generator("torch_cuda", high).randn((16,))).all()


@pytest.mark.parametrize("source", TORCH)
@pytest.mark.parametrize("number", [0, 1, 5])
def test_pictures_of_a_batch(source, number):
    """The start is the batch's; the draws go on behind it, and are the batch's on a card."""
    h, w, c = 8, 6, 4
    x_T, noise = picture_noise(source, 11, number, (h, w, c), 3)
    assert x_T.shape == (h, w, c) and noise.shape == (3, h, w, c) and x_T.dtype == noise.dtype == np.float32
    for b in (number + 1, 7):
        batch = generator(source, 11)
        np.testing.assert_array_equal(x_T, batch.randn((b, c, h, w))[number].transpose(1, 2, 0))
        if source == "torch_cuda" or number + 1 == b:
            one = (b,) if source == "torch_cuda" else ()
            for drawn in noise:
                theirs = batch.randn((*one, c, h, w))
                np.testing.assert_array_equal(drawn, (theirs[number] if one else theirs).transpose(1, 2, 0))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2, 4), (3, 5, 1), (5, 5, 4)])
def test_odd_sizes_as_the_last_of_their_batch(number, shape):
    """Sizes that do not fill blocks of 16: the end of a batch is drawn twice, a small one number by number."""
    h, w, c = shape
    batch = generator("torch_cpu", 3)
    theirs = batch.randn((number + 1, c, h, w))[number]
    x_T, noise = picture_noise("torch_cpu", 3, number, shape, 2)
    np.testing.assert_array_equal(x_T, theirs.transpose(1, 2, 0))
    for drawn in noise:
        np.testing.assert_array_equal(drawn, batch.randn((c, h, w)).transpose(1, 2, 0))


@pytest.mark.parametrize("source", TORCH)
def test_no_draws(source):
    assert picture_noise(source, 0, 0, (4, 4, 4), 0)[1].shape == (0, 4, 4, 4)


@pytest.mark.parametrize("source", TORCH)
def test_a_large_picture_is_quick(source):
    """SDXL's 1024 x 1024 and 50 draws, the last of a batch: 0.2 s alone."""
    began = time.perf_counter()
    x_T, noise = picture_noise(source, 1, 63, (128, 128, 4), 50)
    assert time.perf_counter() - began < 5.0
    assert abs(noise.std() - 1) < 2e-3 and abs(noise.mean()) < 2e-3 and abs(x_T.std() - 1) < 1e-2


@pytest.mark.parametrize(
    ("source", "seed", "message"),
    [
        ("jax", 0, "no generator of torch's.*known: torch_cpu, torch_cuda"),
        ("torch_gpu", 0, "nearest: torch_c"),
        (None, 0, "no generator of torch's"),
        ("torch_cpu", -1, "0 to 2.64 - 1, not -1"),
        ("torch_cuda", 1 << 64, "0 to 2.64 - 1"),
        ("torch_cpu", 1.5, "whole number"),
        ("torch_cpu", True, "whole number"),
    ],
)
def test_bad_input(source, seed, message):
    with pytest.raises(ValueError, match=message):
        picture_noise(source, seed, 0, (8, 8, 4), 1)
