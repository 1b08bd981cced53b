"""A seed means the same numbers whatever JAX was told, and no program of ours minds how strict it was made."""

import contextlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.core import keys
from sdjax.export import calls
from sdjax.nn.shapes import expected_params
from sdjax.runtime import programs
from sdjax.train.averages import Decay
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import fresh
from sdjax.train.step import make_plain_step

FLAGS = {
    "rbg": partial(jax.default_prng_impl, "rbg"),
    "unsafe_rbg": partial(jax.default_prng_impl, "unsafe_rbg"),
    "threefry_partitionable off": partial(jax.threefry_partitionable, False),
    "x64": partial(jax.enable_x64, True),
    "rank_promotion": partial(jax.numpy_rank_promotion, "raise"),
    "dtype_promotion": partial(jax.numpy_dtype_promotion, "strict"),
    "debug_nans": partial(jax.debug_nans, True),
    "debug_infs": partial(jax.debug_infs, True),
    "debug_key_reuse": partial(jax.debug_key_reuse, True),
}
SEEDS = [0, 1, 7, 2**31, 2**32 - 1]
TWO = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.fixture
def offset():
    """JAX's setting that moves all seeds by a number."""
    jax.config.update("jax_random_seed_offset", 5)
    yield
    jax.config.update("jax_random_seed_offset", 0)


def test_a_key_is_jaxs_own_by_default():
    expected = np.stack([jax.random.key_data(jax.random.key(seed)) for seed in SEEDS])
    np.testing.assert_array_equal(jax.random.key_data(keys.key(SEEDS)), expected)
    np.testing.assert_array_equal(jax.random.key_data(keys.key(7)), jax.random.key_data(jax.random.key(7)))


def test_a_seed_is_not_moved(offset):
    assert jax.random.key_data(keys.key(7)).tolist() == [0, 7]


@pytest.mark.parametrize("name", FLAGS)
def test_the_same_noise_under_every_setting(name):
    """CASES.md A 25, 26, B 12 and 13: what a run starts from, and training's first parameters."""
    expected = np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], (3, 4)))(keys.key([1, 2])))
    network, x = nn.Dense(4), np.zeros((1, 4), np.float32)
    weights = jax.jit(network.init)(jax.random.key(3), x)["params"]["kernel"]
    with FLAGS[name]():
        made = programs.noise((3, 4), None, keys.key([1, 2]))
        assert made.dtype == jnp.float32
        np.testing.assert_array_equal(made, expected)
        np.testing.assert_array_equal(fresh(network, 3, x)["kernel"], weights)


@pytest.mark.parametrize(
    "name", ["rbg", "threefry_partitionable off", "rank_promotion", "dtype_promotion", "debug_key_reuse"]
)
def test_the_same_latents_under_every_setting(sd, name):
    """The whole of a run that draws, on a path and anew: not compiled again, since nothing of it has changed."""
    asked = {"steps": 3, "sampler": ["dpmpp_2m_sde", "euler_ancestral"], "seed": 5, "decode": False, "progress": False}
    expected, before = sd.generate(TWO, **asked).latents, programs.run_rows._cache_size()
    with FLAGS[name]():
        np.testing.assert_array_equal(sd.generate(TWO, **asked).latents, expected)
    assert programs.run_rows._cache_size() == before


@pytest.mark.parametrize("name", ["x64", "rank_promotion", "dtype_promotion"])
def test_every_program_is_traced_alike(sd, name):
    """All programs of a picture, traced and not compiled: the same shapes and dtypes in and out."""
    expected = {call.digest for call in calls(sd, batches=(2,))}
    with FLAGS[name]():
        assert {call.digest for call in calls(sd, batches=(2,))} == expected


@pytest.mark.parametrize("name", ["x64", "rank_promotion", "dtype_promotion"])
def test_the_parameters_of_a_checkpoint_are_known_under_every_setting(sd, name):
    """What `load` compares a file with."""
    networks = {"text_encoder": sd.encoders["text_encoder"].config, "unet": sd.unet, "vae": sd.vae}
    with FLAGS[name]():
        expected = expected_params(networks)
    assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, sd.params)


@pytest.mark.parametrize("name", ["x64", "rank_promotion", "dtype_promotion"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral"])
def test_a_scan_of_ones_own_is_traced(name, sampler):
    """`sdjax.sample` in a user's own program, with his settings."""
    plan = sdjax.plan(sampler, 3, {"num_train_timesteps": 1000})
    with FLAGS[name]():
        run = partial(sdjax.sample, plan, lambda x, t: 0.5 * x, key=keys.key(0))
        made = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32))
    assert made.dtype == jnp.float32


def test_a_gradient_under_x64_is_traced(sd):
    """The programs within a user's program keep their dtypes."""
    with jax.enable_x64(True):
        z = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
        assert jax.eval_shape(jax.grad(lambda z: sd.decode(z).sum()), z).dtype == jnp.float32


def test_training_is_settled_too():
    """One step whose loss draws, by the numbers that `fit` gives it."""

    def loss(params, batch, key):
        return jnp.sum(params * jax.random.normal(key, (4,)) * batch)

    step = make_plain_step(loss, Optimiser("adamw"), [Decay(0.9)])
    made = []
    for setting in (contextlib.nullcontext, FLAGS["threefry_partitionable off"]):
        state = step.begin(jnp.ones(4))
        with setting(), keys.settled():
            made.append(step(state, jnp.ones(4), keys.key(0), 0.1)[0].params)
    np.testing.assert_array_equal(*made)
