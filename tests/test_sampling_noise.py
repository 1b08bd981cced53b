"""A picture's noise by use: no two alike, no picture's like another's, and torch's in the order of diffusers."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sdjax import torch_noise
from sdjax.model.tasks import INPAINTING, TEXT, UPSCALING
from sdjax.request.image_inputs import ImageInputs
from sdjax.runtime.executor import Compiled
from sdjax.sampling import noise as draws

SHAPE, RUN = (4, 6, 4), Compiled().run
PIXELS, MASK = np.zeros((2, 32, 48, 3), np.float32), np.ones((2, 32, 48, 1), np.float32)


def asked(source="jax", kind=TEXT, count=2, strengths=(0.5, 0.5), numbers=(0, 1), plan_draws=3, **parts):
    inputs = ImageInputs(kind, 32, 48, strengths, **parts)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(np.asarray(numbers, np.uint32))
    return SimpleNamespace(
        inputs=inputs, noise_source=source, drawn=(), seeds=(7,) * count, numbers=numbers,
        plan=SimpleNamespace(draws=plan_draws), keys=lambda stage=None: keys,
    )  # fmt: skip


def test_no_two_are_alike():
    made = draws.make(asked(pixels=PIXELS, mask=MASK), SHAPE, RUN)
    assert list(made.by_use) == ["encoding", "start", "masked"] and made.sampler is None
    every = [np.asarray(one) for noise in made.by_use.values() for one in noise]
    for i, one in enumerate(every):
        assert one.shape == SHAPE and abs(one.std() - 1) < 0.3
        assert all(abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5 for other in every[:i])


def test_the_start_is_that_of_text_to_image():
    with_picture = draws.make(asked(pixels=PIXELS, mask=MASK), SHAPE, RUN)["start"]
    np.testing.assert_array_equal(with_picture, draws.make(asked(strengths=(None, None)), SHAPE, RUN)["start"])


@pytest.mark.parametrize(
    "parts, order",
    [
        ({"strengths": (None, None)}, ("start",)),
        ({"pixels": PIXELS}, ("encoding", "start")),
        ({"pixels": PIXELS, "mask": MASK}, ("encoding", "start", "masked")),
        ({"kind": INPAINTING, "pixels": PIXELS, "mask": MASK, "strengths": (None, None)}, ("start", "masked")),
    ],
)
def test_torch_draws_in_diffusers_order(parts, order):
    """One generator with the seed, numbers in turn: by use, then the sampler's."""
    made = draws.make(asked("torch_cpu", numbers=(0, 0), **parts), SHAPE, RUN)
    generator = torch_noise.generator("torch_cpu", 7)
    for use in order:
        np.testing.assert_array_equal(made[use][1], np.moveaxis(generator.randn((4, 4, 6)), 0, -1))
    for k in range(3):
        np.testing.assert_array_equal(made.sampler[k, 0], np.moveaxis(generator.randn((4, 4, 6)), 0, -1))


def test_an_upscaler_draws_for_the_small_picture_first():
    made = draws.make(asked("torch_cpu", UPSCALING, numbers=(0, 0), strengths=(None, None), pixels=PIXELS), SHAPE, RUN)
    generator = torch_noise.generator("torch_cpu", 7)
    np.testing.assert_array_equal(made["low_res"][0], np.moveaxis(generator.randn((3, 4, 6)), 0, -1))
    np.testing.assert_array_equal(made["start"][0], np.moveaxis(generator.randn((4, 4, 6)), 0, -1))
    with pytest.raises(ValueError, match="give a seed per picture"):
        draws.make(asked("torch_cpu", UPSCALING, strengths=(None, None), pixels=PIXELS), SHAPE, RUN)
