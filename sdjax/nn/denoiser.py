"""What predicts, as the sampling loop sees it.

    conditions = denoiser.precompute(params, conditions)             once a text, before the loop
    rows = denoiser.per_row(params, timesteps, conditions)           once a run of rows, before the loop
    raw = denoiser(params, x, rows[i], conditions)                   at every row that needs the network

The loop, the guidance and the solver know a network by these three alone. So another one (a transformer in place of the
U-Net, a U-Net with a ControlNet beside it) is a file of its own and a line in `runtime.denoisers.DENOISERS`.
"""

from collections.abc import Hashable
from typing import Any, Protocol

import jax

from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions
from sdjax.nn.injections import NOTHING, Injections


class Denoiser(Hashable, Protocol):
    """A network's config and the dtype it computes in: hashable and equal by value, for it is a program's static part.

    Arrays are arguments, pure functions all three: parameters as a plain tree, conditions for b pictures.
    """

    def precompute(self, params: Params, conditions: Conditions) -> Conditions:
        """The same conditions, with what follows from them alone and is the same at every step made beforehand."""

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions) -> Any:
        """What follows from the timesteps, made beforehand: a tree of arrays `r p ...`.

        timesteps: `r`, one for each row, or `r b` where every picture has its own. p is b, or 1 for what is the same
        for all pictures.
        """

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions) -> jax.Array:
        """The raw prediction, whatever its type: x `b h w c` at the network's own scale -> `b h w c`, float32.

        row: of what `per_row` gives, `b ...`; or the timesteps themselves, `b`. conditions: as `precompute` gives them.
        """


class Steerable(Denoiser, Protocol):
    """A denoiser that other networks can add to (see `control`)."""

    def __call__(
        self, params: Params, x: jax.Array, row: Any, conditions: Conditions, injected: Injections = NOTHING
    ) -> jax.Array:
        """See `Denoiser`. injected: what they add inside it."""
