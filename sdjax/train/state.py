"""What a training run carries from step to step: what learns, its averages, and what the optimiser remembers.

Only what learns is in it (what a method's `start` gave), in float32. The rest of a model's parameters are arguments of
the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sdjax.core import short
from sdjax.core.keys import key, settled
from sdjax.core.tree import Params
from sdjax.train.averages import Average
from sdjax.train.mesh import born, place
from sdjax.train.optimisers import Optimiser


@partial(
    jax.tree_util.register_dataclass, data_fields=("step", "params", "averages", "optimiser_state"), meta_fields=()
)
@dataclass(frozen=True)
class TrainState:
    """A training run at one step."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    averages: dict[str, Params]  # by the averages' names
    optimiser_state: optax.OptState

    __repr__ = short.fields

    @classmethod
    def create(
        cls, params: Params, optimiser: Optimiser, averages: Sequence[Average] = (), mesh: Mesh | None = None
    ) -> "TrainState":
        """The state before the first step, on a mesh where one is given; the averages start as the parameters.

        It holds copies: a step donates its state, and `params` may be a loaded model's own.
        """

        def make(params: Params) -> "TrainState":
            begun = cls(
                jnp.zeros((), jnp.int32), params, {one.name: params for one in averages}, optimiser.init(params)
            )
            return jax.tree.map(jnp.copy, begun)  # each leaf an array of its own: none can be donated twice

        with settled():
            return jax.jit(make)(params) if mesh is None else born(make, mesh, place(params, mesh))


def evaluated(state: TrainState, optimiser: Optimiser) -> Params:
    """The parameters to look at and to ship: the first average; without one, what the optimiser says."""
    for average in state.averages.values():
        return average
    return optimiser.evaluated(state.optimiser_state, state.params)


def fresh(network: nn.Module, seed: int, *inputs: Any) -> Params:
    """A network's parameters before training, for inputs of these shapes: the same for a seed in any process."""
    with settled():
        return jax.jit(network.init)(key(seed), *inputs)["params"]
