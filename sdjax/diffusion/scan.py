"""The device side: one `lax.scan` over the rows of a table.

    x_i = W[i, 0] x_T + sum_j W[i, 1 + j] D_j + sum_k W[i, 1 + n + k] n_k,     D_i = c_skip_i x_i + c_out_i
    model(x_i, t_i)

The carry holds every past D and draw in preallocated buffers, so the loop is the same for every solver, and
solver, schedule and step count are data. Rows without an evaluation skip the network (`lax.cond`); padded
rows come to the result again. `sample` is init, advance over all rows, result; a caller who wants a progress
bar or a way to stop jits `advance` once and calls it on one segment of rows after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.diffusion import brownian
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.table import Table

Model = Callable[[jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
    """The state of a run; float32, or x_T's dtype where that is wider.

    Attributes:
      x_T: [b, ...], the unit Gaussian the run started from.
      x: [b, ...], the latents of the last row run: what the network saw last, or, after the result row, the
        result.
      predictions: [r, b, ...], D by slot, zero where not yet known.
      draws: [r, b, ...], Gaussian draws by slot, zero where not yet drawn.
      keys: key per image, [b]; None where the draws were given or none are needed.
    """

    x_T: jax.Array
    x: jax.Array
    predictions: jax.Array
    draws: jax.Array
    keys: jax.Array | None


def sample(
    plan: Plan, model: Model, x_T: jax.Array, *, key: jax.Array | None = None, noise: jax.Array | None = None
) -> jax.Array:
    """Follow `plan` from x_T to the clean latents.

    Args:
      plan: from `sdjax.plan`.
      model: (x [b, ...], t) -> raw prediction [b, ...], with x at the network's own scale and t the timestep,
        a scalar.
      x_T: unit Gaussian [b, ...]; the plan scales it.
      key: for plans with draws: one key (image i then uses fold_in(key, i)) or b keys, one per image, so that
        no draw depends on a neighbour. Noise renewed between two levels is a piece of the image's Brownian path
        (see `brownian`), the same path for any steps; other draws are normal(fold_in(its key, their number)).
      noise: the draws themselves, [draws, b, ...], in place of a key.

    Returns:
      [b, ...], in float32 or x_T's own wider dtype.

    Raises:
      ValueError: shapes do not fit, or a plan with draws came without key and noise.
    """
    x_T = _widened(x_T)
    if x_T.ndim < 1:
        raise ValueError("x_T must be [b, ...], one row per image")
    if plan.draws and key is None and noise is None:
        raise ValueError(f"{plan.sampler} draws noise {plan.draws} times: give key=, or noise= [{plan.draws}, b, ...]")
    if noise is not None and jnp.shape(noise) != (plan.draws, *x_T.shape):
        raise ValueError(f"noise must be {(plan.draws, *x_T.shape)}, not {jnp.shape(noise)}")
    keys = None if key is None or noise is not None or not plan.draws else keys_per_image(key, x_T.shape[0])
    table = plan.table(plan.rows - 1, x_T.dtype)  # the plan is no data here, so nothing needs padding
    return run(table, model, x_T, keys, noise)


def run(
    table: Table, model: Model, x_T: jax.Array, keys: jax.Array | None = None, noise: jax.Array | None = None
) -> jax.Array:
    """`sample` on a table: what a caller jits. keys: [b], noise: [draws, b, ...], either or neither."""
    return result(advance(init(table, x_T, keys, noise), table, model))


def init(table: Table, x_T: jax.Array, keys: jax.Array | None = None, noise: jax.Array | None = None) -> Carry:
    """The state before the first row, of the whole table, not a segment. x_T: [b, ...], float32 or wider."""
    x_T = _widened(x_T)
    zeros = draws = jnp.zeros((len(table), *x_T.shape), x_T.dtype)
    if noise is not None and len(noise):
        number = jnp.asarray(table.draw).reshape(len(table), -1)  # [r, 1], or [r, b] for a plan per image
        number = _beside(number, zeros)
        placed = jnp.take_along_axis(jnp.asarray(noise, x_T.dtype), jnp.maximum(number, 0), axis=0)
        draws = jnp.where(number >= 0, placed, 0)
    return Carry(x_T, x_T, zeros, draws, None if noise is not None else keys)


def advance(carry: Carry, rows: Table, model: Model) -> Carry:
    """Run some rows of the table, in order: `table.rows(start, stop)`, or the whole table."""

    def body(carry: Carry, row: Table) -> tuple[Carry, None]:
        return _row(carry, row, model), None

    return lax.scan(body, carry, jax.tree.map(jnp.asarray, rows))[0]


def result(carry: Carry) -> jax.Array:
    """The clean latents [b, ...], once the result row (row n of the table) has been run."""
    return carry.x


def keys_per_image(key: jax.Array, b: int) -> jax.Array:
    """b typed keys, from one key (image i gets fold_in(key, i)) or b keys; raw uint32 keys are taken too."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(b))
    if key.shape != (b,):
        raise ValueError(f"key must be one key or {b} keys, one per image, not {key.shape}")
    return key


def _widened(x_T: jax.Array) -> jax.Array:
    x_T = jnp.asarray(x_T)
    return x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))


def _row(carry: Carry, row: Table, model: Model) -> Carry:
    """One row: bring in a draw, combine, evaluate, remember."""
    draws = carry.draws
    if carry.keys is not None:
        drawn = lax.cond(
            jnp.any(row.draw >= 0), _draw, lambda keys, row, x: jnp.zeros_like(x), carry.keys, row, carry.x
        )
        draws = lax.dynamic_update_index_in_dim(draws, drawn, row.slot, 0)
    x = _beside(row.x_weight, carry.x_T) * carry.x_T + _weigh(row.d_weights, carry.predictions)
    x = x + lax.cond(jnp.any(row.n_weights != 0), _weigh, lambda w, draws: jnp.zeros_like(x), row.n_weights, draws)
    raw = lax.cond(
        jnp.any(row.evaluate),
        lambda x, t: model(x, t).astype(x.dtype),
        lambda x, t: jnp.zeros_like(x),
        x,
        row.timestep,
    )
    denoised = _beside(row.c_skip, x) * x + _beside(row.c_out, x) * raw
    denoised = lax.cond(jnp.any(row.clip < jnp.inf), _held, lambda d, row: d, denoised, row)
    predictions = lax.dynamic_update_index_in_dim(carry.predictions, denoised, row.slot, 0)
    return replace(carry, x=x, predictions=predictions, draws=draws)


def _draw(keys: jax.Array, row: Table, x: jax.Array) -> jax.Array:
    """The row's draw for every image, in x's shape and dtype: fresh by its number, or a piece of the image's path."""
    number, start, stop = (jnp.broadcast_to(a, keys.shape) for a in (row.draw, row.start, row.stop))

    def fresh(key: jax.Array, k: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, k), like.shape, like.dtype)

    path = lax.cond(
        jnp.any(start >= 0),
        lambda: jax.vmap(brownian.increment)(keys, jnp.maximum(start, 0), jnp.maximum(stop, 1), x),
        lambda: jnp.zeros_like(x),
    )
    other = lax.cond(jnp.any(start < 0), lambda: jax.vmap(fresh)(keys, number, x), lambda: jnp.zeros_like(x))
    return jnp.where(_beside(start >= 0, x), path, other)


def _held(denoised: jax.Array, row: Table) -> jax.Array:
    """`denoised` within the row's bound; see `table.Bound`."""
    limit, ratio = (jnp.broadcast_to(a, denoised.shape[:1]) for a in (row.clip, row.ratio))

    def threshold(d: jax.Array) -> jax.Array:
        s = jax.vmap(lambda one, q: jnp.quantile(jnp.abs(one), q))(d.reshape(len(d), -1), ratio)
        return jnp.where(ratio > 0, jnp.clip(s, 1.0, limit), 1.0)

    scale = lax.cond(jnp.any(ratio > 0), threshold, lambda d: jnp.ones_like(limit), denoised)
    bound = _beside(jnp.where(ratio > 0, scale, limit), denoised)
    return jnp.clip(denoised, -bound, bound) / _beside(scale, denoised)


def _weigh(weights: jax.Array, history: jax.Array) -> jax.Array:
    """sum_r weights[r] history[r]; history [r, b, ...], weights [r], or [r, b] for a plan per image."""
    spec = "r,rb...->b..." if weights.ndim == 1 else "rb,rb...->b..."
    return jnp.einsum(spec, weights, history, precision=lax.Precision.HIGHEST)


def _beside(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value` (a scalar, or one per entry of x's first axis) with axes added so that it multiplies x."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value
