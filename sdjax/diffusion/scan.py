"""The device side: one `lax.scan` over the rows of a table.

The carry holds every past D and draw in preallocated buffers, so the loop is the same for every solver, and
solver, schedule and step count are data. Rows without an evaluation skip the network; padded rows come to the
result again. `run` is init, advance over all rows, result; a caller who wants a progress bar or a way to stop
jits `run_rows` once and calls it on one segment of rows after the other.

A model is a function (x, t) -> raw prediction, or a `guidance.Guided`: a network with the guider that combines its
answers. That one knows what the network says without guidance, which some plans ask for, and may carry a state from one
evaluation to the next.

Memory: 2 r times the latents, for the predictions and the draws of r rows (3 r where a plan asks for the unguided
predictions): at Stable Diffusion 1.5's size (64 KiB of
float32 latents) 8 MiB a picture for up to 64 rows, 128 MiB for a thousand. Gradients go through everything. A row is
linear but for the network, and that is run again on the way back instead of being stored (`jax.checkpoint`), so they
take some ten times the latents a row and no more, whatever the network's size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.core import hints, short
from sdjax.diffusion import row as rows_
from sdjax.diffusion.guidance import Guided
from sdjax.diffusion.guiders.guider import Guider
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan_batch import PlanBatch
from sdjax.diffusion.table import Table

Model = Callable[..., jax.Array] | Guided


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
    """The state of a run; float32, or x_T's dtype where that is wider.

    Attributes:
      x_T: [b, ...], the unit Gaussian the run started from.
      x: [b, ...], the latents of the last row run: what the network saw last, or, after the result row, the
        result.
      predictions: [r, b, ...], D by slot, zero where not yet known.
      draws: [r, b, ...], Gaussian draws by slot, zero where there is none.
      unguided: [r, b, ...], U by slot, where the table asks for it; else None.
      guider: the guider's state, a tree of [b, ...]; None where it keeps nothing.
    """

    x_T: jax.Array
    x: jax.Array
    predictions: jax.Array
    draws: jax.Array
    unguided: jax.Array | None = None
    guider: Any = None

    __repr__ = short.fields


@hints.arguments(hints.SAMPLE, needs="the plan is from sdjax.plan, the model a function (x, t), x_T unit Gaussian")
def sample(
    plan: Plan | PlanBatch,
    model: Model,
    x_T: jax.Array,
    *,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Follow `plan` from x_T to the clean latents.

    Differentiable with respect to x_T, the noise and whatever `model` closes over. Jit what calls it: each call from
    outside of jit traces the model anew.

    Args:
      plan: from `sdjax.plan`, or `sdjax.stack_plans` for b images each on a plan of its own.
      model: (x [b, ...], t) -> raw prediction [b, ...], with x at the network's own scale and t the timestep,
        a scalar, or [b] under stacked plans; or what `guidance.classifier_free` gives.
      x_T: unit Gaussian [b, ...]; the plan scales it.
      key: for plans with draws: one key (image i then uses fold_in(key, i)) or b keys, one per image, so that
        no draw depends on a neighbour. Noise renewed between two levels is a piece of the image's Brownian path
        (see `brownian`), the same path for any steps; other draws are normal(fold_in(its key, their number)).
      noise: the draws themselves, [draws, b, ...], in place of a key.

    Returns:
      [b, ...], in float32 or x_T's own wider dtype.

    Raises:
      ValueError: shapes do not fit, a plan with draws came without key and noise, or one that asks for the unguided
        prediction with a model that is a plain function.
    """
    if not isinstance(plan, Plan | PlanBatch):
        raise ValueError(f"plan must be what sdjax.plan gives, as sd.plan('euler', 20), not {short.short(plan)}")
    if not callable(model):
        raise ValueError(f"model must be a function (x, t) -> raw prediction, not {short.short(model)}")
    try:
        x_T = widened(x_T)
    except (TypeError, ValueError):
        raise ValueError(f"x_T must be an array of numbers [b, ...], not {short.short(x_T)}") from None
    if x_T.ndim < 1:
        raise ValueError("x_T must be [b, ...], one row per image")
    if isinstance(plan, PlanBatch):
        plan.check_batch(x_T.shape[0])
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
    guider = model.guider if isinstance(model, Guided) else None
    return result(run_rows(draw(init(table, x_T, guider), table, keys, noise), table, model))


def init(table: Table, x_T: jax.Array, guider: Guider | None = None) -> Carry:
    """The state before the first row, of the whole table, not a segment, with no draws.

    x_T: [b, ...]. guider: that of the model which is to run; None where it is a plain function.
    """
    x_T = widened(x_T)
    nothing = jnp.zeros((len(table), *x_T.shape), x_T.dtype)
    unguided = None if table.u_weights is None else nothing
    return Carry(x_T, x_T, nothing, nothing, unguided, None if guider is None else guider.init(x_T))


def draw(carry: Carry, table: Table, keys: jax.Array | None = None, noise: jax.Array | None = None) -> Carry:
    """The same state with the table's draws: from keys [b], or placed from noise [draws, b, ...]; neither is none."""
    if noise is not None and len(noise):
        return replace(carry, draws=_placed(table, noise, carry.x_T))
    if noise is not None or keys is None:
        return carry
    drawn = lax.map(lambda row: rows_.draw(keys, row, carry.x_T), jax.tree.map(jnp.asarray, table))
    return replace(carry, draws=drawn)


def run_rows(carry: Carry, rows: Table, model: Model, per_row: Any = None, known: KnownRegion | None = None) -> Carry:
    """Run some rows of the table, in order: `table.rows(start, stop)`, or the whole table.

    per_row: a tree of arrays with the same leading axis as `rows`. Where given, `model` is called with its slice for
    the row as a third argument: what changes from step to step without being part of the sampler.
    known: what is held of the pictures, see `inpaint`.
    """
    if carry.unguided is not None and not isinstance(model, Guided):
        raise ValueError(
            "this plan asks for the unguided prediction, which a function (x, t) -> raw does not tell; give what "
            "sdjax.diffusion.guidance.classifier_free gives"
        )

    def body(carry: Carry, now: tuple[Table, Any]) -> tuple[Carry, None]:
        row, extra = now
        x = _latents(carry, row, known)
        network = _network(model, row, *(() if per_row is None else (extra,)))
        denoised, unguided, state = rows_.evaluate(row, x, network, carry.guider, carry.unguided is not None)
        predictions = _filed(carry.predictions, denoised, row, known)
        carry = replace(carry, x=x, predictions=predictions, guider=state)
        if carry.unguided is not None and unguided is not None:
            carry = replace(carry, unguided=_filed(carry.unguided, unguided, row, known))
        return carry, None

    return lax.scan(body, carry, jax.tree.map(jnp.asarray, (rows, per_row)))[0]


def _network(model: Model, row: Table, *extra: Any) -> rows_.Evaluate:
    """The model in one row, run again on the way back of a gradient in place of being stored."""

    def run(x: jax.Array, state: Any) -> tuple[Any, Any, Any]:
        if isinstance(model, Guided):
            return model.evaluate(x, row, state, *extra)
        return model(x, row.timestep, *extra), None, state

    return jax.checkpoint(run, prevent_cse=False)  # which a scan does not need


def _filed(history: jax.Array, denoised: jax.Array, row: Table, known: KnownRegion | None) -> jax.Array:
    """The history with the row's clean latents in their slot, in which what is known is as it is."""
    denoised = denoised if known is None else known.prediction(denoised)
    return lax.dynamic_update_index_in_dim(history, denoised, row.slot, 0)


def inspect_row(
    carry: Carry, table: Table, index: jax.Array, known: KnownRegion | None = None
) -> tuple[jax.Array, jax.Array]:
    """x and D of a row that has been run: what the network saw there, and the clean latents that it predicted.

    table: the whole one. index: int32, the row's number. Both [b, ...]. D is kept, x is put together again.
    """
    row = jax.tree.map(lambda a: jnp.asarray(a)[index], table)
    return _latents(carry, row, known), carry.predictions[index]


def _latents(carry: Carry, row: Table, known: KnownRegion | None) -> jax.Array:
    x = rows_.combine(row, carry.x_T, carry.predictions, carry.draws, carry.unguided)
    return x if known is None else known.latents(row, x)


def result(carry: Carry) -> jax.Array:
    """The clean latents [b, ...], once the result row (row n of the table) has been run."""
    return carry.x


def keys_per_image(key: jax.Array, b: int) -> jax.Array:
    """b typed keys, from one key (image i gets fold_in(key, i)) or b keys; raw uint32 keys are taken too."""
    if not hasattr(key, "dtype"):
        raise ValueError(f"key must be a jax key, as jax.random.key(0), not {short.short(key)}")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(b))
    if key.shape != (b,):
        raise ValueError(f"key must be one key or {b} keys, one per image, not {key.shape}")
    return key


def widened(x_T: jax.Array) -> jax.Array:
    """float32, or x_T's own dtype where that is wider."""
    x_T = jnp.asarray(x_T)
    return x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))


def _placed(table: Table, noise: jax.Array, x_T: jax.Array) -> jax.Array:
    """Draws by their number, [draws, b, ...] -> by slot, [r, b, ...]; zero where a row has none."""
    number = jnp.asarray(table.draw).reshape(len(table), -1)  # [r, 1], or [r, b] for a plan per image
    number = rows_.append_dims(number, jnp.zeros((1, *x_T.shape)))
    placed = jnp.take_along_axis(jnp.asarray(noise, x_T.dtype), jnp.maximum(number, 0), axis=0)
    return jnp.where(number >= 0, placed, 0)
