"""One row of a table on the device: draw, combine, evaluate.

    x_i = W[i, 0] x_T + sum_j W[i, 1 + j] D_j + sum_k W[i, 1 + n + k] n_k  (+ sum_j V[i, j] U_j)                (1)
    D_i = c_skip_i x_i + c_out_i model(x_i, t_i)                                                               (2)
    U_i = c_skip_i x_i + c_out_i unguided(x_i, t_i)                                                            (3)
The sum in brackets and (3) are there only where a plan asks for the unguided prediction. What a row does not need
it skips (`lax.cond`): the network, the draws, the bound. In all functions `row` is one row of a `Table`, its fields
scalars, or [b] where every image has a plan of its own; histories are [r, b, ...] by slot.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.core.short import short
from sdjax.diffusion import brownian
from sdjax.diffusion.table import Table

Evaluate = Callable[[jax.Array, Any], tuple[Any, Any, Any]]


def draw(keys: jax.Array, row: Table, like: jax.Array) -> jax.Array:
    """The row's Gaussian draw for every image, of the shape and dtype of `like` [b, ...]; zero where it has none.

    Fresh, from fold_in(the image's key, the draw's number), or a piece of the image's Brownian path.
    """
    number, start, stop = (jnp.broadcast_to(a, keys.shape) for a in (row.draw, row.start, row.stop))

    def fresh(key: jax.Array, k: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, k), like.shape, like.dtype)

    path = lax.cond(
        jnp.any(start >= 0),
        lambda: jax.vmap(brownian.increment)(keys, jnp.maximum(start, 0), jnp.maximum(stop, 1), like),
        lambda: jnp.zeros_like(like),
    )
    other = lax.cond(
        jnp.any((number >= 0) & (start < 0)),
        lambda: jax.vmap(fresh)(keys, jnp.maximum(number, 0), like),
        lambda: jnp.zeros_like(like),
    )
    return jnp.where(append_dims(start >= 0, like), path, jnp.where(append_dims(number >= 0, like), other, 0))


def combine(
    row: Table, x_T: jax.Array, predictions: jax.Array, draws: jax.Array, unguided: jax.Array | None = None
) -> jax.Array:
    """x_i of equation 1, [b, ...]."""
    x = append_dims(row.x_weight, x_T) * x_T
    terms = [(row.d_weights, predictions), (row.n_weights, draws)]
    for weights, history in terms if unguided is None else [*terms, (row.u_weights, unguided)]:
        x = x + lax.cond(jnp.any(weights != 0), _weigh, lambda w, _: jnp.zeros_like(x_T), weights, history)
    return x


def evaluate(
    row: Table, x: jax.Array, network: Evaluate, state: Any = None, unguided: bool = False
) -> tuple[jax.Array, jax.Array | None, Any]:
    """D_i of equation 2 within the row's bound, U_i of equation 3 where it is asked for, and the new state.

    network: (x, state) -> the raw prediction [b, ...], the one without guidance, the new state (a tree of [b, ...]).
    Where the row evaluates nothing, or not for some of the images, their state stays as it is.
    """

    def run(x: jax.Array, state: Any) -> tuple[jax.Array, jax.Array | None, Any]:
        raw, other, new = network(x, state)
        return _answer(raw, x), _answer(other, x) if unguided else None, _kept(row.evaluate, new, state)

    def skip(x: jax.Array, state: Any) -> tuple[jax.Array, jax.Array | None, Any]:
        return jnp.zeros_like(x), jnp.zeros_like(x) if unguided else None, state

    raw, other, state = lax.cond(jnp.any(row.evaluate), run, skip, x, state)
    denoised = lax.cond(jnp.any(row.clip < jnp.inf), _bounded, lambda d, row: d, _clean(row, x, raw), row)
    return denoised, None if other is None else _clean(row, x, other), state


def _clean(row: Table, x: jax.Array, raw: jax.Array) -> jax.Array:
    """The clean latents that a raw output at x means."""
    return append_dims(row.c_skip, x) * x + append_dims(row.c_out, x) * raw


def _kept(evaluated: jax.Array, new: Any, old: Any) -> Any:
    """The new state for those images that were evaluated: all, or those of [b]."""
    if evaluated.ndim == 0:
        return new
    return jax.tree.map(lambda a, b: jnp.where(append_dims(evaluated, a), a, b), new, old)


def _answer(raw: Any, x: jax.Array) -> jax.Array:
    """What the network gave, in the dtype of x. Raises ValueError unless it is an array of the shape of x."""
    if getattr(raw, "shape", None) != x.shape:
        raise ValueError(f"model must give an array of the shape of x, {x.shape}, not {short(raw)}")
    return jnp.asarray(raw).astype(x.dtype)


def append_dims(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` (a scalar, or one per entry of x's first axes) with axes added so that it multiplies x."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def _bounded(denoised: jax.Array, row: Table) -> jax.Array:
    """`denoised` within the row's bound; see `table.Bound`."""
    limit, ratio = (jnp.broadcast_to(a, denoised.shape[:1]) for a in (row.clip, row.ratio))

    def threshold(d: jax.Array) -> jax.Array:
        s = jax.vmap(lambda one, q: jnp.quantile(jnp.abs(one), q))(d.reshape(len(d), -1), ratio)
        return jnp.where(ratio > 0, jnp.clip(s.astype(d.dtype), 1.0, limit), 1.0)

    scale = lax.cond(jnp.any(ratio > 0), threshold, lambda d: jnp.ones_like(limit), denoised)
    bound = append_dims(jnp.where(ratio > 0, scale, limit), denoised)
    return jnp.clip(denoised, -bound, bound) / append_dims(scale, denoised)


def _weigh(weights: jax.Array, history: jax.Array) -> jax.Array:
    """sum_r weights[r] history[r]; history [r, b, ...], weights [r], or [r, b] for a plan per image."""
    spec = "r,rb...->b..." if weights.ndim == 1 else "rb,rb...->b..."
    return jnp.einsum(spec, weights, history, precision=lax.Precision.HIGHEST)
