"""Seeds and jax's keys: one number of 64 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.core import keys
from sdjax.request import seeds


@pytest.mark.parametrize(
    "given,plain",
    [
        (3, 3),
        (np.int64(7), 7),
        ([3, 4], [3, 4]),
        (np.array([3, 4]), [3, 4]),
        (np.array([1, 2], np.uint32), [1, 2]),
        (jax.random.key(3), 3),
        (jax.random.PRNGKey(3), 3),
        ([jax.random.key(3), 4], [3, 4]),
        ([np.array([0, 3], np.uint32), jax.random.PRNGKey(9)], [3, 9]),
        (np.array([[0, 3], [1, 5]], np.uint32), [3, 2**32 + 5]),
        (jnp.int32(7), 7),
        (jax.random.wrap_key_data(jnp.array([[2, 1], [0, 5]], jnp.uint32)), [2**33 + 1, 5]),
    ],
)
def test_what_a_seed_may_be(given, plain):
    assert seeds.plain(given) == plain


def test_a_key_goes_through_its_number_and_back():
    """Keys that came of splitting are as good as those of whole numbers."""
    split = jax.random.split(jax.random.fold_in(jax.random.key(11), 5), 3)
    back = keys.key(seeds.check(seeds.plain(split), 3))
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(split))
    np.testing.assert_array_equal(jax.random.key_data(keys.key([3]))[0], jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, True, None, "3"])
def test_what_a_seed_may_not_be(value):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 18446744073709551615 or a jax key"):
        seeds.check(seeds.plain(value), 1)
    if value in (-1, None):
        with pytest.raises(ValueError, match="random.randrange"):
            seeds.check(value, 1)


def test_other_keys_and_traced_ones_are_told():
    with pytest.raises(ValueError, match='kind rbg, .* jax.random.key.3, impl="threefry2x32".'):
        seeds.plain(jax.random.key(3, impl="rbg"))
    with pytest.raises(ValueError, match="before tracing: call generate outside of jit"):
        jax.eval_shape(seeds.plain, jax.random.key(3))
    with pytest.raises(ValueError, match=r"seed holds keys of shape \(2, 2\)"):
        seeds.plain(jax.random.split(jax.random.key(3), (2, 2)))
    with pytest.raises(ValueError, match="seed has 3 entries for 2 pictures"):
        seeds.check([1, 2, 3], 2)
