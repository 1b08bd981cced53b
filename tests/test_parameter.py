"""A layer's parameter: given, drawn or only a shape, and never drawn in vain."""

import jax
import jax.numpy as jnp
import pytest

from sdjax.nn.layers import Conv, Dense, Embed
from sdjax.nn.parameter import parameter, shapes

X = jnp.ones((2, 8, 8, 3))


def test_shapes_are_those_that_init_makes():
    for module, x in ((Conv(5, jnp.float32), X), (Embed(7, 4, jnp.float32), jnp.zeros((1, 2), jnp.int32))):
        made = module.init(jax.random.key(0), x)["params"]
        assert shapes(module, x) == jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), made)


def test_init_draws_and_apply_looks_up():
    module = Dense(4, jnp.float32)
    params = module.init(jax.random.key(1), X)
    assert params["params"]["kernel"].std() > 0.1 and not params["params"]["bias"].any()
    doubled = jax.tree.map(lambda a: 2 * a, params)
    assert jnp.array_equal(module.apply(doubled, X), 2 * module.apply(params, X))


def test_another_shape_is_refused_by_name():
    params = Dense(4, jnp.float32).init(jax.random.key(1), X)
    with pytest.raises(ValueError, match=r"kernel must have the shape \(3, 5\), not \(3, 4\)"):
        Dense(5, jnp.float32).apply(params, X)


def test_an_initialiser_is_left_alone_where_nothing_is_drawn(monkeypatch):
    def never(*_):
        raise AssertionError("drawn in vain")

    monkeypatch.setattr(
        "sdjax.nn.parameter.parameter", lambda module, name, init, shape: parameter(module, name, never, shape)
    )
    assert set(shapes(Dense(4, jnp.float32), X)) == {"kernel", "bias"}
    Dense(4, jnp.float32).apply({"params": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}, X)
