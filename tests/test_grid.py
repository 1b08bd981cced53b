"""Windows that cover a picture, and moments that add up."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.nn.tiling import grid


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 6))
def test_windows_cover_an_axis_once(size, most, margin):
    axis = grid.Axis.cut(size, most, margin)
    assert axis.core <= most
    seen = []
    for window, core, repeated in axis.places():
        assert window >= 0 and window + axis.window <= size
        first, end = window + core, window + core + axis.core
        assert window == 0 or core >= margin
        assert window + axis.window == size or axis.window - core - axis.core >= margin
        seen += range(first + repeated, end)
    assert seen == list(range(size))


def test_moments_of_parts_are_those_of_the_whole():
    """With a mean a thousand times the deviation, where E[x^2] - E[x]^2 has no digit left in float32."""
    x = 1000 + jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 8)), jnp.float32)
    sums = (jnp.zeros(()), jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    for part, repeated in ((x[:, :4], (0, 0)), (x[:, 2:], (2, 0))):
        sums = grid._added(sums, part, jnp.asarray(repeated))
    grouped = np.asarray(x, np.float64).reshape(2, 42, 4, 2)
    np.testing.assert_allclose(sums[1], grouped.mean((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(sums[2] / sums[0], grouped.var((1, 3)), rtol=1e-4)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_cores_put_a_picture_together(height, width, most, margin, scale):
    cut = grid.Grid(grid.Axis.cut(height, most, margin), grid.Axis.cut(width, most, margin))
    x = jnp.arange(scale**2 * height * width, dtype=jnp.float32).reshape(1, scale * height, scale * width, 1)
    out, sums = jnp.full_like(x, -1), (jnp.zeros(()), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    for place in cut.places():
        out, sums = cut.written(out, cut.window(x, place), place), cut.added(sums, cut.window(x, place), place)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_allclose(sums[1], x.mean(), rtol=1e-5)
