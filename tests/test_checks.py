"""Arguments of `generate` in whatever type they come, and messages that stay short."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.request import checks

LONG = "x" * 100_000
TWO = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array(3), 3),
        (np.float32(1.5), 1.5),
        (jnp.float32(1.5), 1.5),
        (jnp.array([2.0, 5.0]), [2.0, 5.0]),
        ([jnp.int32(1), np.int64(2), 3], [1, 2, 3]),
        ((np.array(["a"]),), (["a"],)),
        (Fraction(1, 2), Fraction(1, 2)),
        ("text", "text"),
        (None, None),
    ],
)
def test_numbers_of_arrays_are_pythons_own(value, expected):
    made = checks.plain(value, "steps")
    assert made == expected and type(made) is type(expected)


def test_a_key_is_a_seed_alone():
    with pytest.raises(ValueError, match="eta is a jax key; seed= is what takes one"):
        checks.plain(jax.random.key(3), "eta")


def test_an_array_without_axes_is_one_value():
    assert not checks.is_list(np.array(3)) and checks.is_list(np.array([3]))


def test_arrays_ask_for_the_same_pictures_as_lists(sd):
    asked = {"sampler": "euler_ancestral", "decode": False, "progress": False}
    listed = sd.generate(TWO, steps=3, eta=1.0, guidance_scale=[2.0, 5.0], seed=[3, 4], **asked)
    arrays = {"steps": np.array(3), "eta": jnp.float32(1), "guidance_scale": jnp.array([2.0, 5.0])}
    made = sd.generate(np.array(TWO), **arrays, seed=np.array([3, 4]), **asked)
    np.testing.assert_array_equal(made.latents, listed.latents)
    assert json.dumps(made.settings) == json.dumps(listed.settings)


@pytest.mark.parametrize(
    "name",
    [
        "sampler",
        "schedule",
        "preset",
        "guidance_schedule",
        "noise_source",
        "prompt_style",
        "clip_skip",
        "refiner",
        "sampler_options",
    ],
)
def test_a_long_value_is_not_repeated_whole(sd, name):
    with pytest.raises(ValueError, match=name.partition("_")[0]) as told:
        sd.generate("a", **{name: LONG}, progress=False)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "name", ["steps", "eta", "preset", "guidance_scale", "mask_blur", "prompt", "sampler", "strength"]
)
@pytest.mark.parametrize("value", [np.zeros((3, 3, 3)), jnp.ones(3), {}, b"x", 1j], ids=lambda v: type(v).__name__)
def test_another_type_is_a_value_error(sd, name, value):
    with pytest.raises(ValueError):
        sd.generate(**{"prompt": "a", name: value}, progress=False)
