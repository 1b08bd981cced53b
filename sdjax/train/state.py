"""What a training run carries from step to step, and the step itself.

The averaged parameters (EMA) are what gets shipped: e <- d e + (1 - d) p with d = min(decay, (1 + n) / (10 + n)) at
step n, the warm-up of Tensorflow's `ExponentialMovingAverage`, so that the first steps are forgotten quickly.

The learning rate is an argument of the step: one compiled program, whatever the schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from sdjax.core import short
from sdjax.core.devices import everywhere, local
from sdjax.core.keys import key, settled

Params = Any
Loss = Callable[..., jax.Array]  # (params, batch, key, and what is fixed) -> scalar


@partial(jax.tree_util.register_dataclass, data_fields=("step", "params", "average", "optimiser_state"), meta_fields=())
@dataclass(frozen=True)
class TrainState:
    """A training run at one step."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    average: Params  # the EMA of params
    optimiser_state: optax.OptState

    __repr__ = short.fields

    @classmethod
    def create(cls, params: Params, optimiser: optax.GradientTransformation) -> "TrainState":
        """The state before the first step; the average starts as the parameters.

        It holds copies: a step donates its state, and `params` may be a loaded model's own.
        """
        own, average = (jax.tree.map(jnp.array, params) for _ in range(2))
        return cls(jnp.zeros((), jnp.int32), own, average, optimiser.init(own))


def fresh(network: nn.Module, seed: int, *inputs: Any) -> Params:
    """A network's parameters before training, for inputs of these shapes: the same for a seed in any process."""
    with settled():
        return jax.jit(network.init)(key(seed), *inputs)["params"]


Step = Callable[[TrainState, Any, jax.Array, float], tuple[TrainState, dict[str, jax.Array]]]


def make_step(loss: Loss, optimiser: optax.GradientTransformation, ema_decay: float, *fixed: Any) -> Step:
    """The compiled step: (state, batch, key, rate) -> (next state, {"loss", "gradient_norm"}).

    The optimiser's updates are those of rate 1. The old state is donated. fixed: what the loss takes after its other
    arguments, the same at every step: the parameters of networks that are not trained. As arguments of the program they
    are in memory once, and in no program's constants.
    """
    held = jax.device_put(fixed, everywhere(local(None)))

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, batch: Any, key: jax.Array, rate: jax.Array, fixed: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        value, gradients = jax.value_and_grad(loss)(state.params, batch, jax.random.fold_in(key, state.step), *fixed)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser_state, state.params)
        params = jax.tree.map(lambda p, update: p + rate * update, state.params, updates)
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + n) / (10 + n))
        average = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.average, params)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, average, optimiser_state), metrics

    return lambda state, batch, key, rate: step(state, batch, key, rate, held)


@dataclass(frozen=True)
class WarmupStableDecay:
    """The rate at step n: up to `peak` over `warmup` steps, constant, down to 0 over the last `fall` of `steps`.

    With fall 0 it stays for ever (Hagele et al. 2024: a run at a constant rate can be ended whenever one likes).
    """

    peak: float
    steps: int
    fall: int
    warmup: int = 100

    def __call__(self, n: int) -> float:
        up = n / self.warmup if n < self.warmup else 1.0
        down = (self.steps - n) / self.fall if self.fall else 1.0
        return self.peak * max(0.0, min(1.0, up, down))


def make_optimiser(kind: str) -> optax.GradientTransformation:
    """AdamW, or Muon for the kernels with AdamW at a tenth of the rate for the rest; gradients clipped at norm 1.

    Its rate is 1: `make_step` multiplies the updates. Muon (Jordan et al. 2024) takes a kernel as the matrix from its
    inputs (height, width and channels for a convolution) to its outputs.

    Raises:
        ValueError: unknown kind.
    """
    clip = optax.clip_by_global_norm(1.0)
    if kind == "adamw":
        return optax.chain(clip, optax.adamw(1.0, b2=0.99, weight_decay=1e-2))
    if kind == "muon":
        parts = {
            "kernel": together(contrib.muon(1.0, muon_weight_dimension_numbers=_stacked)),
            "rest": optax.adam(0.1, b2=0.99),
        }
        return optax.chain(clip, optax.partition(parts, _parts))
    raise ValueError(f"unknown optimiser {kind!r}; known: adamw, muon")


def together(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on stacks [n, inputs, outputs] of all kernels of one size: fewer products, each n times as large."""

    def size(leaf: jax.Array) -> str:
        return f"{leaf.size // leaf.shape[-1]}x{leaf.shape[-1]}"

    def stack(tree: Params) -> dict[str, jax.Array]:
        groups: dict[str, list[jax.Array]] = {}
        for leaf in jax.tree.leaves(tree):
            groups.setdefault(size(leaf), []).append(leaf.reshape(-1, leaf.shape[-1]))
        return {name: jnp.stack(matrices) for name, matrices in groups.items()}

    def unstack(groups: dict[str, jax.Array], like: Params) -> Params:
        left = {name: iter(matrices) for name, matrices in groups.items()}
        return jax.tree.map(lambda leaf: next(left[size(leaf)]).reshape(leaf.shape), like)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        new, state = inner.update(stack(updates), state, None if params is None else stack(params))
        return unstack(new, updates), state

    return optax.GradientTransformation(lambda params: inner.init(stack(params)), update)


def _stacked(stacks: Params) -> Any:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(1, 2), stacks)


def _parts(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" if path[-1].key == "kernel" else "rest", params)
