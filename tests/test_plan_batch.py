"""Plans side by side: every image as it would come out alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import classifier_free
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests.reference import SD, SHAPE, draws, toy


def lanes():
    """A plan of every sampler, each with another step count."""
    for i, name in enumerate(SAMPLERS):
        config = {**SD, "final_sigmas_type": "sigma_min"} if name == "dpm_solver" else SD
        yield plan(name, 8 + i % 5, config)


def model(x, t):
    return toy(jnp, x, t if jnp.ndim(t) == 0 else t[:, None, None, None])


def test_every_sampler_in_one_batch():
    """Each image its own sampler, steps, guidance scale and key; all equal to their single runs."""
    plans = list(lanes())
    b = len(plans)
    x = jax.random.normal(jax.random.key(0), (b, *SHAPE[1:]))
    keys = scan.keys_per_image(jax.random.key(1), b)
    scales = jnp.linspace(1.0, 7.5, b)
    together = sdjax.sample(sdjax.stack_plans(plans), classifier_free(doubled, scales), x, key=keys)
    follow = jax.jit(lambda table, x, key, scale: scan.run(table, classifier_free(doubled, scale), x, key))
    for i, p in enumerate(plans):
        alone = follow(p.table(128), x[i : i + 1], keys[i : i + 1], scales[i : i + 1])[0]
        assert np.abs(together[i] - alone).max() <= 1e-5 * np.abs(alone).max(), p.sampler


def doubled(x, t):
    """A network whose unconditioned half answers otherwise."""
    raw = model(x, t)
    half = len(raw) // 2
    return raw.at[:half].multiply(0.9)


def test_given_noise_and_what_lanes_tell():
    plans = [plan("euler", 5, SD, "karras"), plan("ddim", 9, SD, eta=1.0)]
    both = sdjax.stack_plans(plans)
    assert (both.rows, both.draws, both.evaluations.tolist(), both.sampler) == (10, 9, [5, 9], "euler, ddim")
    x, noise = jax.random.normal(jax.random.key(0), SHAPE), jnp.asarray(draws(9), jnp.float32)
    mixed = sdjax.sample(both, model, x, noise=noise)
    for i, p in enumerate(plans):
        alone = sdjax.sample(p, model, x[i : i + 1], noise=noise[: p.draws, i : i + 1])
        np.testing.assert_allclose(mixed[i], alone[0], rtol=1e-5, atol=1e-5)


def test_bad_lanes():
    p = plan("euler", 5, SD)
    with pytest.raises(ValueError, match="at least one"):
        sdjax.stack_plans([])
    for given in (p, None, 5):
        with pytest.raises(ValueError, match="stack_plans takes a list of plans, one per image, not "):
            sdjax.stack_plans(given)
    with pytest.raises(ValueError, match=r"plans\[1\] is of type str"):
        sdjax.stack_plans([p, "euler"])
    with pytest.raises(ValueError, match="2 plans are stacked, one per image, but the batch holds 3"):
        sdjax.sample(sdjax.stack_plans([p, p]), model, jnp.zeros((3, *SHAPE[1:])))
    with pytest.raises(ValueError, match="too short"):
        sdjax.stack_plans([p, plan("euler", 9, SD)]).table(5)
