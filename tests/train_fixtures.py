"""A tiny model to train: its parameters in float32, a batch of two pictures, what it predicts of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.nn.injections import NOTHING
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of
from sdjax.train.losses.denoising import Denoising


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.fixture(scope="module")
def objective(sd):
    return Denoising(Architecture.of(sd.networks.spec))


@pytest.fixture(scope="module")
def base(sd):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), sd.params)


@pytest.fixture(scope="module")
def batch(sd):
    rng = np.random.default_rng(0)
    ids = sd.networks.spec.encoders["text_encoder"].tokenizer.tokens(["a red circle", "a blue square"])
    latents, noise = rng.standard_normal((2, 2, 8, 8, 4), np.float32)
    return {
        "latents": latents,
        "noise": noise,
        "ids": {"text_encoder": ids},
        "timesteps": np.array([700, 20]),
        "keys": jax.random.split(jax.random.key(0), 2),
    }


@pytest.fixture(scope="module")
def answer(objective, batch):
    """What the U-Net of these parameters predicts of the batch, its texts encoded by theirs."""

    @jax.jit
    def run(params):
        told = conditions_of(objective.architecture, params, batch)
        return objective.predict(params, batch["noise"], jnp.asarray(batch["timesteps"]), told, NOTHING)

    return run


def learnt(trainable, seed: int = 1):
    """As if it had learnt for long: every number moved."""
    leaves, treedef = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved)
