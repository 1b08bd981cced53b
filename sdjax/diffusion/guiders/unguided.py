"""No guidance: the network's answer for the prompt, and nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from sdjax.diffusion.guiders.guider import PROMPT, Strength
from sdjax.diffusion.table import Table


@dataclass(frozen=True)
class Unguided:
    """The one answer as it is; it is also what the sampler may ask for as the unguided one."""

    branches = (PROMPT,)
    prompt_alone = False  # there is nothing to leave out

    def init(self, x: jax.Array) -> None:
        """It keeps nothing."""

    def __call__(
        self, answers: Sequence[jax.Array], x: jax.Array, row: Table | None, data: Strength | None, state: None
    ) -> tuple[jax.Array, jax.Array, None]:
        """See `Guider`; `data` is not looked at."""
        (raw,) = answers
        return raw, raw, state
