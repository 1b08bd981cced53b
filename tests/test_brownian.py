"""The Brownian path: unit increments, independent where they do not overlap, adding up where they do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import brownian
from sdjax.diffusion.noise import Level

N = 20_000
VES = (14.6, 3.0, 2.9, 0.4, 0.03)


@pytest.fixture(scope="module")
def increments():
    """{(i, j): N draws between VES[i] and VES[j]}, each path one image."""
    levels = [Level.from_ve(ve, 0.0) for ve in VES]
    draw = jax.jit(jax.vmap(brownian.increment, (0, None, None, None)))
    keys = jax.random.split(jax.random.key(0), N)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    spans = {(i, j): jnp.asarray(brownian.span(levels[i], levels[j])) for i, j in pairs}
    return {pair: np.asarray(draw(keys, *spans[pair], jnp.zeros(()))) for pair in pairs}


def test_unit_gaussian(increments):
    for draws in increments.values():
        assert abs(draws.mean()) < 4 / math.sqrt(N)
        assert abs(draws.var() - 1) < 4 * math.sqrt(2 / N)
        assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96 / N)


def test_independent_where_they_do_not_overlap(increments):
    for one, other in [((0, 1), (1, 2)), ((0, 1), (2, 3)), ((1, 2), (2, 3)), ((0, 3), (3, 4)), ((0, 1), (3, 4))]:
        assert abs(np.corrcoef(increments[one], increments[other])[0, 1]) < 4 / math.sqrt(N)


@pytest.mark.parametrize(("i", "k", "j"), [(0, 1, 2), (1, 2, 3), (0, 2, 4), (0, 3, 4), (2, 3, 4)])
def test_parts_add_up_to_the_whole(increments, i, k, j):
    p = brownian.share(*(Level.from_ve(VES[n], 0.0) for n in (i, k, j)))
    parts = math.sqrt(p) * increments[i, k] + math.sqrt(1 - p) * increments[k, j]
    np.testing.assert_allclose(parts, increments[i, j], atol=2e-3)  # leaves are 2e-5 wide, the shortest step 0.03


def test_ends_of_the_clock():
    """No signal and no noise are held at the tree's ends, and a draw to its very end is a unit Gaussian still."""
    start, stop = brownian.span(Level(0.0, 1.0, 999.0), Level(1.0, 0.0, 0.0))
    assert (start, stop) == (0, brownian.LEAVES)
    draw = jax.vmap(brownian.increment, (0, None, None, None))
    keys = jax.random.split(jax.random.key(1), 4000)
    for ends in [(start, stop), (stop - 1, stop), (start, start + 1)]:
        draws = np.asarray(draw(keys, *jnp.asarray(ends), jnp.zeros(())))
        assert np.isfinite(draws).all() and abs(draws.var() - 1) < 0.1
