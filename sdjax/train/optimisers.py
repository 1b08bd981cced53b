"""Optimisers: what a step makes of a gradient g, at a rate r that is an argument and not a constant.

    clipped    g <- g min(1, clip / |g|), |g| the norm over all leaves                                       (1)
    adamw      p <- p - r (m / (sqrt(n) + eps) + w p),  m, n the debiased moments of g                       (2)
    lion       p <- p - r (sign(b1 m + (1 - b1) g) + w p)                                                    (3)

(2: Loshchilov & Hutter 2019, arXiv:1711.05101, as torch has it, where the decay w is multiplied by the rate; 3: Chen et
al. 2023, arXiv:2302.06675.) The others: Adafactor (Shazeer & Stern 2018, arXiv:1804.04235), rows and columns of second
moments in place of all of them, at the rate it is given; Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101), whose
rate multiplies the one that it estimates, so 1 is usual; schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682),
which wants a constant rate, and whose parameters y are not those to look at: `evaluated` gives x; Muon (Jordan et al.
2024), for kernels, beside Adam at a tenth of the rate for the rest.

Prodigy's and schedule-free's states depend on the rate they are told: updates at rate 1, multiplied afterwards, would
be another algorithm. So an optimiser is put together anew, from its rate, where a step is traced. How its state nests
does not depend on the rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from sdjax.core.errors import unknown
from sdjax.core.numbers import is_number
from sdjax.core.tree import Params

Rate = Any  # a scalar array, or a number
Mask = Callable[[Params], Any]  # a tree of bools like its argument's

USUAL = {  # b1, b2 and weight decay, where none is given: torch's, and those of each one's authors
    "adamw": (0.9, 0.999, 0.01),
    "adafactor": (0.9, 0.999, 0.0),
    "lion": (0.9, 0.99, 0.01),
    "prodigy": (0.9, 0.999, 0.0),
    "schedule_free": (0.9, 0.999, 0.0),
    "muon": (0.9, 0.99, 0.0),
}
DECAYS = ("kernels", "all")


@dataclass(frozen=True)
class Optimiser:
    """How parameters follow their gradient. Two of the same fields are the same optimiser.

    Attributes:
      kind: a key of USUAL, which also says b1, b2 and weight_decay where they are None.
      eps: beside the root of the second moment.
      decay: what weight decay pulls at: "kernels" (leaves of that name) or "all".
      clip: the most that the gradient's norm may be (equation 1); None: however long it is.
    """

    kind: str = "adamw"
    b1: float | None = None
    b2: float | None = None
    eps: float = 1e-8
    weight_decay: float | None = None
    decay: str = "kernels"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.kind not in USUAL:
            raise ValueError(unknown(f"optimiser {self.kind!r} is unknown", self.kind, USUAL))
        if self.decay not in DECAYS:
            raise ValueError(unknown(f"decay {self.decay!r} is unknown", self.decay, DECAYS))
        for name, value in zip(("b1", "b2", "weight_decay"), USUAL[self.kind], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, most in (("b1", 1.0), ("b2", 1.0), ("eps", 1.0), ("weight_decay", 1e3)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < most:
                raise ValueError(f"the optimiser's {name} must be from 0 to below {most:g}, not {value!r}")
        if self.clip is not None and not (is_number(self.clip) and self.clip > 0):
            raise ValueError(f"clip must be a norm above 0, or None for no clipping, not {self.clip!r}")
        if self.kind == "schedule_free" and not self.b1:
            raise ValueError("schedule_free needs a b1 above 0: its parameters lie between two sequences")

    def init(self, params: Params) -> optax.OptState:
        """The state before the first step."""
        return self._at(0.0).init(params)

    def update(self, gradients: Params, state: Any, params: Params, rate: Rate) -> tuple[Params, optax.OptState]:
        """One step at this rate: (the parameters after it, the state after it)."""
        updates, state = self._at(rate).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def evaluated(self, state: Any, params: Params) -> Params:
        """The parameters to look at and to ship: schedule-free's x; in the others those that learn."""
        if self.kind != "schedule_free":
            return params
        (inner,) = (one for one in state if isinstance(one, contrib.ScheduleFreeState))
        return contrib.schedule_free_eval_params(inner, params)

    def _at(self, rate: Rate) -> optax.GradientTransformation:
        clip = optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip)
        return optax.chain(clip, getattr(self, f"_{self.kind}")(rate))

    @property
    def _decayed(self) -> optax.GradientTransformation:
        return optax.add_decayed_weights(self.weight_decay, self._mask)

    @property
    def _mask(self) -> Mask | None:
        return are_kernels if self.decay == "kernels" else None

    def _adamw(self, rate: Rate) -> optax.GradientTransformation:
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=self._mask)

    def _lion(self, rate: Rate) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=self._mask)

    def _adafactor(self, rate: Rate) -> optax.GradientTransformation:
        """Its updates cut to a mean square of 1 in each leaf, and no larger for larger parameters."""
        scaled = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        return optax.chain(scaled, self._decayed, optax.scale_by_learning_rate(rate))

    def _prodigy(self, rate: Rate) -> optax.GradientTransformation:
        """Safeguarded: a rate that rises from 0 would else make its estimate run away.

        Until there has been any gradient, optax's estimate is 0 / 0; nothing moves then but by the decay.
        """
        own = contrib.prodigy(rate, (self.b1, self.b2), eps=self.eps, safeguard_warmup=True)

        def update(gradients: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
            updates, new = own.update(gradients, state, params)
            nothing = optax.tree.max(jax.tree.map(lambda s: jnp.max(jnp.abs(s)), new.grad_sum)) == 0
            new = new._replace(estim_lr=jnp.where(nothing, state.estim_lr, new.estim_lr))
            updates = jax.tree.map(lambda one: jnp.where(nothing, 0.0, one), updates)
            debiased = jnp.sqrt(1 - self.b2**new.count) / (1 - self.b1**new.count)
            decay = optax.add_decayed_weights(
                -(self.weight_decay or 0.0) * state.estim_lr * rate * debiased, self._mask
            )
            return decay.update(updates, decay.init(params), params)[0], new

        return optax.GradientTransformation(own.init, update)

    def _schedule_free(self, rate: Rate) -> optax.GradientTransformation:
        """The momentum is in the two sequences, so Adam's own is left out."""
        scaled = optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)
        base = optax.chain(scaled, self._decayed, optax.scale_by_learning_rate(rate))
        return contrib.schedule_free(base, rate, self.b1)

    def _muon(self, rate: Rate) -> optax.GradientTransformation:
        """A kernel is taken as the matrix from its inputs (height, width and channels) to its outputs."""
        muon = contrib.muon(rate, weight_decay=self.weight_decay, muon_weight_dimension_numbers=_stacked)
        rest = optax.adamw(
            0.1 * rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay if self.decay == "all" else 0.0
        )
        return optax.partition({True: stacked(muon), False: rest}, are_kernels)


def are_kernels(params: Params) -> Any:
    """Whether each leaf is a kernel, by its name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(path) and path[-1].key == "kernel", params)


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
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
