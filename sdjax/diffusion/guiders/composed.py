"""Several prompts on one picture, each by its weight w_k, everywhere or where its region is.

    c = sum_k w_k c_k + (1 - sum_k w_k) u                                                               (4)
                                (Liu et al. 2022, arXiv:2206.01714, equation 11)
is what takes the place of c in equation 1 of `cfg`. With a region a weight is one for every place: w_k times a mask
`h w` (Bar-Tal et al. 2023, arXiv:2302.08113, equation 5 with the prompts' masks as weights).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from sdjax.diffusion.guiders.cfg import combine
from sdjax.diffusion.guiders.guider import PROMPT, UNGUIDED, Strength
from sdjax.diffusion.row import append_dims
from sdjax.diffusion.table import Table


@dataclass(frozen=True)
class ComposedPrompts:
    """Equation 4 for `count` prompts, then equations 1 and 2 of `cfg`."""

    count: int
    prompt_alone = False  # at scale 1 all prompts count

    @property
    def branches(self) -> tuple[str, ...]:
        """Without a prompt, then each prompt."""
        return UNGUIDED, *[PROMPT] * self.count

    def init(self, x: jax.Array) -> None:
        """It keeps nothing."""

    def __call__(
        self, answers: Sequence[jax.Array], x: jax.Array, row: Table | None, data: Strength, state: None
    ) -> tuple[jax.Array, jax.Array, None]:
        """See `Guider`."""
        uncond, *conds = answers
        return combine(uncond, compose(uncond, conds, data.weights), data.scale, data.rescale), uncond, state


def compose(uncond: jax.Array, conds: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
    """Equation 4: u and each c_k [b, ...], weights [k, b] or [k, b, h, w, 1] -> c [b, ...].

    Exactly c_1 where it alone has a weight, of 1.
    """
    rest = append_dims(1 - weights.sum(0), uncond) * uncond
    return sum((append_dims(w, c) * c for w, c in zip(weights, conds, strict=True)), rest)
