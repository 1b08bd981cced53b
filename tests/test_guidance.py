"""Guidance: the doubled batch, its order, a scale per image, and no guidance at scale 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.guidance import classifier_free, pair
from sdjax.diffusion.plan import plan
from sdjax.diffusion.scan import run
from tests.reference import SD

B = 3
UNCOND, COND = jnp.arange(3.0)[:, None], 10.0 + jnp.arange(3.0)[:, None]
X = jax.random.normal(jax.random.key(0), (B, 4))


def network(x, t, context):
    t = jnp.broadcast_to(t, x.shape[:1])[:, None]
    return jnp.tanh(x * 0.3 + 0.1 * context["words"] + t / 1000)


def doubled(x, t):
    return network(x, t, pair({"words": UNCOND}, {"words": COND}))


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0, np.array([1.0, 7.5, 3.0], np.float32)])
@pytest.mark.parametrize("t", [500.0, np.array([1.0, 500.0, 999.0], np.float32)])
def test_both_halves_of_one_batch(scale, t):
    u, c = network(X, t, {"words": UNCOND}), network(X, t, {"words": COND})
    s = np.broadcast_to(scale, (B,))[:, None]
    np.testing.assert_allclose(classifier_free(doubled, scale)(X, t), u + s * (c - u), rtol=1e-5, atol=1e-6)


def test_scale_is_data():
    traces = []

    @jax.jit
    def generate(table, scale):
        traces.append(1)
        return run(table, classifier_free(doubled, scale), X)

    table = plan("dpmpp_2m", 5, SD).table()
    strong, weak = (
        generate(table, np.full(B, 9.0, np.float32)),
        generate(table, np.array([1.0, 9.0, 2.0], np.float32)),
    )
    assert len(traces) == 1
    np.testing.assert_allclose(weak[1], strong[1], rtol=1e-5)
    assert np.abs(weak[0] - strong[0]).max() > 1e-2
