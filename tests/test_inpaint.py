"""A picture held in place: outside the mask it comes back, inside nothing changes but through the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import scan
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests.reference import SD

SHAPE = (2, 4, 4, 3)
RNG = np.random.default_rng(0)
NOISE, ORIGINAL = (jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32) for _ in range(2))
HARD = np.ones((*SHAPE[:3], 1), np.float32)
HARD[:, :, 2:] = 0
CONFIG = {**SD, "clip_sample": False}


def model(x, t):
    """A network in which every element depends on its neighbours."""
    mixed = jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2) + x
    return jnp.tanh(0.4 * mixed + t / 1000)


@jax.jit
def run(table, known, keys, x_T):
    return scan.result(scan.run_rows(scan.draw(scan.init(table, x_T), table, keys), table, model, known=known))


def follow(the_plan, mask, x_T=NOISE):
    keys = scan.keys_per_image(jax.random.key(1), SHAPE[0])
    return np.asarray(run(the_plan.table(128), KnownRegion(ORIGINAL, jnp.asarray(mask), NOISE), keys, x_T))


def by_hand(the_plan, mask, x_T=NOISE):
    """Row by row in NumPy: what the network sees is mended before it is asked, as a pipeline would do it."""
    known, xs, ds = np.asarray(ORIGINAL, np.float64), [], []
    w, n = the_plan.weights, the_plan.rows - 1
    for i in range(n + 1):
        x = w[i, 0] * np.asarray(x_T, np.float64) + sum((w[i, 1 + j] * ds[j] for j in range(i)), np.zeros(SHAPE))
        alpha, sigma = (1.0, 0.0) if i == n else (the_plan.alpha[i], the_plan.sigma[i])
        if i:
            x = mask * x + (1 - mask) * (alpha * known + sigma * np.asarray(NOISE))
        xs.append(x)
        if i < n:
            raw = np.asarray(model(jnp.asarray(x, jnp.float32), the_plan.row_timesteps[i]), np.float64)
            ds.append(the_plan.c_skip[i] * x + the_plan.c_out[i] * raw)
    return xs[-1]


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "unipc", "lms"])
@pytest.mark.parametrize("strength", [None, 0.6])
def test_equal_to_mending_what_the_network_sees(name, strength):
    """Under a mask of zeros and ones equation 2 is nothing but (1): the solvers work element by element."""
    p = plan(name, 10, CONFIG, strength=strength)
    x_T = NOISE if strength is None else p.start.alpha * ORIGINAL + p.start.sigma * NOISE
    np.testing.assert_allclose(follow(p, HARD, x_T), by_hand(p, HARD, x_T), atol=2e-4)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_outside_the_mask_nothing_changes(name):
    made = follow(plan(name, 8, CONFIG), HARD)
    np.testing.assert_array_equal(made[:, :, 2:], np.asarray(ORIGINAL)[:, :, 2:])
    assert np.abs(made - np.asarray(ORIGINAL))[:, :, :2].max() > 0.1


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral"])
def test_a_free_picture_is_as_without(name):
    p, keys = plan(name, 8, CONFIG), scan.keys_per_image(jax.random.key(1), SHAPE[0])
    free = jax.jit(lambda table, keys, x: scan.run(table, model, x, keys))(p.table(128), keys, NOISE)
    np.testing.assert_array_equal(follow(p, np.ones_like(HARD)), free)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_a_soft_mask_lies_between(name):
    """The less of a picture is free, the nearer its result is to the original, and not at once."""
    p = plan(name, 20, CONFIG)
    away = [np.abs(follow(p, np.full_like(HARD, free)) - np.asarray(ORIGINAL)).mean() for free in (1, 0.75, 0.5, 0.25)]
    assert all(near < 0.9 * far for far, near in zip(away, away[1:], strict=False))
    assert away[-1] > 0.001


def test_a_run_that_is_to_go_on_holds_the_noisy_picture():
    p = plan("euler", 10, CONFIG, denoising_end=0.5)
    known = p.alpha[-1] * np.asarray(ORIGINAL) + p.sigma[-1] * np.asarray(NOISE)
    assert p.sigma[-1] > 0.1
    np.testing.assert_allclose(follow(p, HARD)[:, :, 2:], known[:, :, 2:], atol=1e-6)
