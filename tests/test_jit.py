"""A program compiles once for each shape, alone with the platform's options and inside another without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.core import jit
from sdjax.core.jit import Program


def product(scale: float, x: jax.Array, y: jax.Array) -> jax.Array:
    return scale * jnp.dot(x, y)


X, Y = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)


def test_compiles_once_for_each_shape_and_static_argument() -> None:
    run = Program(product, static=1)
    np.testing.assert_array_equal(run(2.0, X, Y), 2 * np.dot(X, Y))
    run(2.0, X + 1, Y)
    assert run._cache_size() == 1
    run(3.0, X, Y)
    run(3.0, X[:1], Y)
    assert run._cache_size() == 3


def test_keeps_its_name_and_words() -> None:
    assert Program(product).__name__ == "product"


def test_runs_inside_of_another_program_and_under_vmap() -> None:
    run = Program(product, static=1)
    both = jax.jit(lambda x: run(2.0, x, Y))(X)
    np.testing.assert_array_equal(both, run(2.0, X, Y))
    rows = jax.vmap(lambda row: run(2.0, row, Y))(X)
    np.testing.assert_array_equal(rows, both)


def test_gives_up_what_is_donated() -> None:
    run = Program(lambda x: x + 1, donate=(0,))
    x = jnp.zeros(1000)
    run(x)
    assert x.is_deleted()


def test_options_that_this_jaxlib_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "OPTIONS", {"cpu": {"xla_cpu_no_such_option": "1"}})
    jit.options.cache_clear()
    try:
        assert jit.options() == {}
    finally:
        jit.options.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an option of XLA:CPU")
def test_the_order_of_operations_spares_memory() -> None:
    """Eight large products, each of which is reduced at once: one of them is in memory at a time, not all."""

    def sums(x: jax.Array, w: jax.Array) -> jax.Array:
        return sum((jnp.sum(jnp.sin(x @ part)) for part in w), jnp.zeros(()))

    x, w = jnp.zeros((512, 64)), jnp.zeros((8, 64, 4096))
    one = 512 * 4096 * 4
    temp = Program(sums).lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temp < 3 * one
    assert jax.jit(sums).lower(x, w).compile().memory_analysis().temp_size_in_bytes > 2 * temp
