"""Guidance by a prompt and by a picture, for networks that also look at a picture (InstructPix2Pix).

With i the output for the picture without the prompt, u for neither, and a scale s_I for the picture,
    raw = u + s_I (i - u) + s (c - i)       (Brooks et al. 2023, arXiv:2211.09800, equation 3)          (5)
which is equation 1 of `cfg` with equation 4 of `composed` for the pair i, c of weights (s_I - s) / s and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from sdjax.diffusion.guiders.cfg import combine
from sdjax.diffusion.guiders.composed import compose
from sdjax.diffusion.guiders.guider import PICTURE, PROMPT, UNGUIDED, Strength
from sdjax.diffusion.table import Table


@dataclass(frozen=True)
class InstructPix2Pix:
    """Equation 5; rescaling (equation 2 of `cfg`) goes back to the spread of c, as in diffusers.

    `data.weights` is [2, b], (s_I - s) / s and 1, as `Guidance.along` makes it of its `image_scales`.
    """

    branches = (UNGUIDED, PICTURE, PROMPT)
    prompt_alone = False  # at s = 1 the picture still pulls by s_I

    def init(self, x: jax.Array) -> None:
        """It keeps nothing."""

    def __call__(
        self, answers: Sequence[jax.Array], x: jax.Array, row: Table | None, data: Strength, state: None
    ) -> tuple[jax.Array, jax.Array, None]:
        """See `Guider`."""
        uncond, *conds = answers
        cond = compose(uncond, conds, data.weights)
        return combine(uncond, cond, data.scale, data.rescale, like=conds[-1]), uncond, state
