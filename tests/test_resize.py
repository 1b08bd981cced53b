"""Resizing: hand values, and what must hold at every size."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.resize import bicubic, bilinear, cubic_weights, linear_weights

KINDS = {
    "linear": linear_weights,
    "corners": lambda m, n: linear_weights(m, n, align_corners=True),
    "cubic": cubic_weights,
}
SIZES = [(1, 1), (1, 5), (2, 4), (3, 3), (4, 8), (5, 7), (7, 5), (8, 3), (9, 1), (24, 12)]


def test_linear_by_hand():
    """Four pixels of two: at -1/4, which counts as 0, then 1/4, 3/4 and 5/4."""
    np.testing.assert_allclose(linear_weights(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(linear_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_corners_by_hand():
    third = 1 / 3
    np.testing.assert_allclose(
        linear_weights(2, 4, align_corners=True), [[1, 0], [2 * third, third], [third, 2 * third], [0, 1]]
    )
    np.testing.assert_allclose(linear_weights(5, 3, align_corners=True), np.eye(5)[[0, 2, 4]])
    np.testing.assert_allclose(linear_weights(5, 1, align_corners=True), np.eye(5)[[0]])


def test_cubic_by_hand():
    """Half way between two pixels a = -3/4 weighs -3/32, 19/32, 19/32, -3/32; a = -1/2 would say -1/16, 9/16."""
    np.testing.assert_allclose(cubic_weights(8, 4)[1], np.array([0, -3, 19, 19, -3, 0, 0, 0]) / 32)
    # The first: the pixel beyond the edge counts as the one at it.
    np.testing.assert_allclose(cubic_weights(8, 4)[0], np.array([16, 19, -3, 0, 0, 0, 0, 0]) / 32)


@pytest.mark.parametrize("m, n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_constants_stay_and_sides_are_alike(kind, m, n):
    weights = KINDS[kind](m, n)
    assert weights.shape == (n, m) and weights.dtype == np.float64
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-14)
    if n > 1 or kind != "corners":  # a single pixel with corners aligned is the first
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_size_changes_nothing(kind):
    np.testing.assert_allclose(KINDS[kind](6, 6), np.eye(6), atol=1e-15)


@pytest.mark.parametrize("m, n", [(5, 9), (9, 5), (4, 16)])
def test_a_ramp_stays_a_ramp(m, n):
    """Corners aligned it goes from end to end; else it is a ramp wherever no edge is near."""
    ends = linear_weights(m, n, align_corners=True) @ np.arange(m)
    np.testing.assert_allclose(ends, np.linspace(0, m - 1, n), atol=1e-12)
    place = (np.arange(n) + 0.5) * m / n - 0.5
    inner = (place >= 0) & (place <= m - 1)
    np.testing.assert_allclose((linear_weights(m, n) @ np.arange(m))[inner], place[inner], atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("resize", [bilinear, bicubic])
def test_rows_and_columns(resize, dtype):
    """Rows become rows, columns columns, pictures and channels do not mix, the dtype stays."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 4)), dtype)
    made = resize(x, (6, 2))
    assert made.shape == (2, 6, 2, 4) and made.dtype == dtype
    turned = resize(x.transpose(0, 2, 1, 3), (2, 6)).transpose(0, 2, 1, 3)
    alone = resize(x[1:, ..., 2:3], (6, 2))
    tolerance = 1e-6 if dtype == jnp.float32 else 0.05
    for one, other in ((made, turned), (made[1:, ..., 2:3], alone)):
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), atol=tolerance)
