"""What a guider is: of several answers of one network it makes the one that the sampler follows.

Guidance evaluates a network beside itself: without the prompt, with each of several prompts, with the picture alone. A
guider names these evaluations, its branches, and combines the raw answers. It is a static object, part of the compiled
program; how strongly it acts is data, by row and picture. It may carry a state from one evaluation of a run to the
next, such as a running mean of past differences (Sadat et al. 2024, arXiv:2410.02416, section 4.1).
"""

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import jax

from sdjax.diffusion.table import Table

# What a branch is told.
UNGUIDED = "unguided"  # the negative prompt, or nothing; and no picture, where the network is shown one
PICTURE = "picture"  # the negative prompt and the picture
PROMPT = "prompt"  # a prompt and the picture


class Strength(Protocol):
    """How strongly b pictures are guided in one row: a row of `guidance.Guidance`."""

    @property
    def scale(self) -> Any:
        """s, a scalar or [b]."""

    @property
    def rescale(self) -> Any:
        """phi, a scalar or [b]; None is 0."""

    @property
    def weights(self) -> Any:
        """Of the branches after the first, [k, b], or [k, b, h, w, 1] where they have regions; None is 1."""


class Guider(Hashable, Protocol):
    """Static and hashable, as a frozen dataclass is; two that are equal are one program.

    `prompt_alone` says that at scale 1 the result is the answer for the prompt, whatever the others are, and the state
    stays as it is: there the other branches need not be evaluated, and the prompt's answer may stand in for theirs.
    """

    @property
    def branches(self) -> tuple[str, ...]:
        """What is evaluated, in the order of the batch: UNGUIDED, PICTURE or PROMPT each."""

    @property
    def prompt_alone(self) -> bool:
        """Whether the prompt's branch is enough where the scale is 1."""

    def init(self, x: jax.Array) -> Any:
        """The state before the first row: a tree of arrays [b, ...], or None. x: the latents [b, ...]."""

    def __call__(
        self, answers: Sequence[jax.Array], x: jax.Array, row: Table | None, data: Strength, state: Any
    ) -> tuple[jax.Array, jax.Array, Any]:
        """One evaluation.

        Args:
          answers: the network's raw outputs [b, ...], one for each of `branches`.
          x: what the network saw, [b, ...]. row: the table's row, which tells x's level and what the outputs mean
            (c_skip, c_out); None where the model is called outside of a run.
          data: how strongly. state: what this gave at the evaluation before, or `init`.

        Returns:
          The raw output to follow [b, ...], the one without guidance [b, ...], and the new state: the same tree of the
          same shapes and dtypes. It is kept for those pictures only that are evaluated in this row.
        """


def keeps_state(guider: Guider, shape: tuple[int, ...]) -> bool:
    """Whether the guider carries anything along a run of latents of that shape, [b, ...]."""
    return bool(jax.tree.leaves(jax.eval_shape(guider.init, jax.ShapeDtypeStruct(shape, "float32"))))
