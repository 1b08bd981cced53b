"""What a training run carries from step to step, and the step itself.

The averaged parameters (EMA) are what gets shipped: e <- d e + (1 - d) p with d = min(decay, (1 + n) / (10 + n)) at
step n, the warm-up of Tensorflow's `ExponentialMovingAverage`, so that the first steps are forgotten quickly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

Params = Any
Loss = Callable[[Params, Any, jax.Array], jax.Array]  # (params, batch, key) -> scalar


@partial(jax.tree_util.register_dataclass, data_fields=("step", "params", "average", "optimiser_state"), meta_fields=())
@dataclass(frozen=True)
class TrainState:
    """A training run at one step."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    average: Params  # the EMA of params
    optimiser_state: optax.OptState

    @classmethod
    def create(cls, params: Params, optimiser: optax.GradientTransformation) -> "TrainState":
        """The state before the first step; the average starts as the parameters."""
        average = jax.tree.map(jnp.array, params)
        return cls(jnp.zeros((), jnp.int32), params, average, optimiser.init(params))


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, ema_decay: float
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled step: (state, batch, key) -> (next state, {"loss", "gradient_norm"}). The old state is donated."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        value, gradients = jax.value_and_grad(loss)(state.params, batch, jax.random.fold_in(key, state.step))
        updates, optimiser_state = optimiser.update(gradients, state.optimiser_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + n) / (10 + n))
        average = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.average, params)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, average, optimiser_state), metrics

    return step


def make_optimiser(
    kind: str, learning_rate: float, steps: int, *, warmup: int = 100, decay: int | None = None
) -> optax.GradientTransformation:
    """AdamW, or Muon for the kernels with AdamW for the rest; gradients clipped at norm 1.

    The rate rises linearly for `warmup` steps, stays, and falls linearly to zero over the last `decay` of `steps`, by
    default two fifths of them (the trapezoid of Hagele et al. 2024); with decay 0 it stays for ever. Muon (Jordan et
    al. 2024) takes a kernel as the matrix from its inputs (height, width and channels for a convolution) to its
    outputs.

    Raises:
        ValueError: unknown kind.
    """
    fall = 2 * steps // 5 if decay is None else decay
    last = optax.linear_schedule(learning_rate, 0.0, fall) if fall else optax.constant_schedule(learning_rate)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup), optax.constant_schedule(learning_rate), last],
        [warmup, steps - fall],
    )
    clip = optax.clip_by_global_norm(1.0)
    if kind == "adamw":
        return optax.chain(clip, optax.adamw(schedule, b2=0.99, weight_decay=1e-2))
    if kind == "muon":
        muon = contrib.muon(
            schedule,
            adam_b2=0.99,
            adam_learning_rate=lambda n: 0.1 * schedule(n),
            muon_weight_dimension_numbers=_matrices,
        )
        return optax.chain(clip, muon)
    raise ValueError(f"unknown optimiser {kind!r}; known: adamw, muon")


def _matrices(params: Params) -> Any:
    """Muon's view of each parameter: kernels as matrices, everything else (None) left to AdamW."""

    def view(path: tuple[Any, ...], value: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        return contrib.MuonDimensionNumbers(tuple(range(value.ndim - 1)), value.ndim - 1)

    return jax.tree_util.tree_map_with_path(view, params)
