"""What an adapter does to one parameter of a module: the protocol that every kind of adapter follows.

With W the parameter in torch's order of axes (`o i`, `o i h w`, or `c` for a bias or a norm) and m the user's scale,

    W' = apply(W, m)                                                                                        (1)

    additive           W' = W + m D, with D independent of W: LoRA, LoHa, LoKr, differences. They commute.
    relative to W      IA3, OFT, BOFT, GLoRA: linear in W, so it matters which W: here what those before left.
    neither            DoRA, which is not even linear in m.

For every kind and convention m = 0 gives W to the last bit.
"""

from typing import Protocol

import numpy as np

from sdjax.core.tree import Shape


class Delta(Protocol):
    """What one module's tensors of an adapter do to one of its parameters. Frozen, arrays on the host."""

    @property
    def kind(self) -> str:
        """What it is called: "LoRA", "LoCon", "LoHa" .."""

    @property
    def additive(self) -> bool:
        """Whether what it adds is independent of W."""

    @property
    def rank(self) -> int | None:
        """Of its factors; None where it has none."""

    def check(self, shape: Shape) -> None:
        """Raises ValueError, without the module's name, where it is for a W of another shape; computes nothing."""

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        """Equation 1: float32 (or float64) in torch's order of axes, in the dtype and shape it came in.

        Never writes to `weight`. Raises ValueError as `check` does.
        """

    def factors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(down `r i` or `r i h w`, up `o r`), float32, whose product is D exactly, alpha / r included in `up`.

        None where D is no product of two thin matrices. What is float64 in the file stays so. See `fit.factors_for`.
        """
