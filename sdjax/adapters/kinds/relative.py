"""What is done to a weight in terms of that weight: the common half of IA3, OFT, BOFT and GLoRA.

    W' = W + m (F(W) - W)           F: the kind's own, at full strength                                     (1)

as A1111 has it, so that the scale 0 is the weight itself.
"""

from typing import ClassVar

import numpy as np

from sdjax.core.tree import Shape


class Relative:
    """Equation 1. A kind says what its `kind` and `rank` are, which shapes it fits, and what it makes of a weight."""

    additive: ClassVar[bool] = False
    kind: ClassVar[str]
    rank: int | None

    def check(self, shape: Shape) -> None:
        raise NotImplementedError

    def full(self, weight: np.ndarray) -> np.ndarray:
        """F(W), a new array."""
        raise NotImplementedError

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        self.check(weight.shape)
        if scale == 0:
            return weight
        found = self.full(weight)
        if scale != 1:
            found -= weight
            found *= scale
            found += weight
        return found

    def factors(self) -> None:
        return None
