"""The step: draw, gradient, update, average; one compiled program for a whole run, whatever its rate.

    batch'  = draw(batch, fold_in(key, n))              the whole batch, once                                (1)
    g       = sum_i c_i grad loss(batch'_i) / sum_i c_i                                                      (2)

with n the step's number, batch'_i the i-th of k pieces and c_i how many of its pictures count. A batch in pieces, one
after the other, needs a k-th of the memory, and (2) is the gradient of the batch in one: a mean of the pieces' means
would not be, where some pictures only fill up. Clipping, the update and the averages come once, after the sums. So a
step is an update of the parameters, everywhere.

A piece takes every k-th picture, so that on a mesh each device keeps the pictures that it has.

What does not learn is an argument too: in memory once, in no program's constants, and none of it is differentiated.
Parameters that `join` does not look at, since what learns stands in their place, are not held at all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sdjax.core.jit import options
from sdjax.core.tree import Params
from sdjax.train.averages import Average, moved
from sdjax.train.mesh import batch_sharding, check_divides, device_mesh, fetched, place, shardings
from sdjax.train.methods.method import Method
from sdjax.train.objective import Batch, Metrics, Objective
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import TrainState, evaluated

Told = dict[str, jax.Array]  # a step's metrics: scalars, among them "loss" and "gradient_norm"
Run = Any  # a jitted function of (state, batch, key, rate, frozen) -> (state, metrics)
Draw = Callable[[Any, jax.Array], Any]
Loss = Callable[[Params, Any, Any], tuple[jax.Array, Metrics]]  # of what learns, what does not, and a drawn batch


@dataclass(frozen=True)
class Step:
    """A compiled step: `step(state, batch, key, rate)` -> (next state, metrics). The old state is donated.

    Attributes:
      run: the program, which takes what does not learn last.
      frozen: that, on the mesh.
    """

    run: Run
    frozen: Any
    optimiser: Optimiser
    averages: tuple[Average, ...]
    accumulate: int
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Any, key: jax.Array, rate: Any) -> tuple[TrainState, Told]:
        check_divides(self.mesh, len(jax.tree.leaves(batch)[0]), self.accumulate)
        return self.run(state, batch, key, jnp.asarray(rate, jnp.float32), self.frozen)

    def begin(self, params: Params) -> TrainState:
        """The state before the first step of what learns."""
        return TrainState.create(params, self.optimiser, self.averages, self.mesh)

    def evaluated(self, state: TrainState) -> Params:
        """The parameters to look at and to ship, on the host: see `state.evaluated`."""
        return fetched(evaluated(state, self.optimiser))


def make_step(
    objective: Objective,
    method: Method,
    trainable: Params,
    params: Mapping[str, Any],
    optimiser: Optimiser,
    averages: Sequence[Average] = (),
    *,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> Step:
    """The step of `objective(method.join(what learns, params), batch, key)`.

    trainable: what `method.start` gave; its shapes alone are looked at. params: all of the model's, by component.
    accumulate: in how many pieces a batch is taken. mesh: all devices, each with the whole state, unless given.
    Raises ValueError for fewer pieces than one.
    """

    leaves, structure = jax.tree.flatten(params)
    needed = _needed(method, trainable, params)

    def loss(trainable: Params, frozen: Sequence[Any], batch: Any) -> tuple[jax.Array, Metrics]:
        left = iter(frozen)
        whole = [next(left) if one else jnp.zeros(leaf.shape) for leaf, one in zip(shapes, needed, strict=True)]
        value, told = objective.loss(method.join(trainable, jax.tree.unflatten(structure, whole)), batch)
        return value, {"loss": value, **told}

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    frozen = [leaf for leaf, one in zip(leaves, needed, strict=True) if one]
    return _made(objective.draw, loss, frozen, optimiser, averages, accumulate, mesh)


def make_plain_step(
    function: Callable[..., jax.Array],
    optimiser: Optimiser,
    averages: Sequence[Average] = (),
    *fixed: Any,
    mesh: Mesh | None = None,
) -> Step:
    """The step of any `function(params, batch, key, *fixed)` -> scalar, a mean over a batch, whose leaves are `b ..`.

    fixed: what is the same at every step. There is no accumulation: what the function draws is the whole batch's.
    """

    def draw(batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return batch, key

    def loss(trainable: Params, frozen: Any, drawn: tuple[Any, jax.Array]) -> tuple[jax.Array, Metrics]:
        value = function(trainable, *drawn, *frozen)
        return value, {"loss": value, "count": jnp.float32(len(jax.tree.leaves(drawn[0])[0]))}

    return _made(draw, loss, fixed, optimiser, averages, 1, mesh)


def _needed(method: Method, trainable: Params, params: Mapping[str, Any]) -> list[bool]:
    """Of each leaf of `params`, whether anything that `join` gives depends on it."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (trainable, dict(params)))
    program = jax.make_jaxpr(method.join)(*shapes).jaxpr
    used = {id(one) for one in program.outvars} | {id(one) for line in program.eqns for one in line.invars}
    return [id(one) in used for one in program.invars[len(jax.tree.leaves(trainable)) :]]


def _made(
    draw: Draw,
    loss: Loss,
    frozen: Any,
    optimiser: Optimiser,
    averages: Sequence[Average],
    accumulate: int,
    mesh: Mesh | None,
) -> Step:
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1 piece, not {accumulate}")
    mesh = device_mesh() if mesh is None else mesh
    gradient = partial(_gradient, loss, accumulate, mesh)

    @partial(jax.jit, donate_argnums=0, compiler_options=options())  # else XLA:CPU undoes what remat saves
    def run(state: TrainState, batch: Any, key: jax.Array, rate: jax.Array, frozen: Any) -> tuple[TrainState, Told]:
        drawn = draw(batch, jax.random.fold_in(key, state.step))
        gradients, told = gradient(state.params, frozen, drawn)
        params, memory = optimiser.update(gradients, state.optimiser_state, state.params, rate)
        n = state.step.astype(jnp.float32)
        moving = {one.name: moved(state.averages[one.name], params, one.weight(n)) for one in averages}
        told = {**told, "gradient_norm": optax.tree.norm(gradients)}
        after = TrainState(state.step + 1, params, moving, memory)
        # Where it lay: else XLA may choose, the next step is another program, and a resumed run has other last bits.
        return jax.lax.with_sharding_constraint(after, shardings(after, mesh)), told

    return Step(run, place(frozen, mesh), optimiser, tuple(averages), accumulate, mesh)


def _gradient(
    loss: Loss, pieces: int, mesh: Mesh, params: Params, frozen: Any, batch: Batch
) -> tuple[Params, dict[str, jax.Array]]:
    """Equation 2, and the metrics, means over all that count but for "count" itself."""
    differentiated = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        (_, told), gradients = differentiated(params, frozen, batch)
        return gradients, dict(told)

    def add(sums: Any, piece: Batch) -> tuple[Any, None]:
        (_, told), gradients = differentiated(params, frozen, piece)
        more = jax.tree.map(lambda one: one * told["count"], (gradients, {**told, "count": jnp.float32(1)}))
        return jax.tree.map(jnp.add, sums, more), None

    cut = jax.tree.map(partial(_pieces, pieces, mesh), batch)
    first = jax.tree.map(lambda leaf: leaf[0], cut)
    (_, told), gradients = jax.eval_shape(differentiated, params, frozen, first)
    nothing = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), (gradients, dict(told)))
    (gradients, told), _ = jax.lax.scan(add, nothing, cut)
    count = told.pop("count")
    mean = jax.tree.map(lambda one: one / jnp.maximum(count, 1.0), (gradients, told))
    return mean[0], {**mean[1], "count": count}


def _pieces(pieces: int, mesh: Mesh, leaf: jax.Array) -> jax.Array:
    """`b ..` -> `pieces b/pieces ..`, piece i every picture whose number leaves i."""
    cut = jnp.moveaxis(leaf.reshape(leaf.shape[0] // pieces, pieces, *leaf.shape[1:]), 1, 0)
    axes = batch_sharding(mesh).spec
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, *axes))
    return jax.lax.with_sharding_constraint(cut, where)
