"""What is added to a weight whatever the weight is: the common half of LoRA, LoHa, LoKr and full differences.

D  = s P          P: the kind's own product; s: alpha / r, or what its file has for it                  (1)
W' = W + m D                                                                                            (2)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds import fit
from sdjax.adapters.kinds.parts import Parts, working
from sdjax.core.tree import Shape


@dataclass(frozen=True, eq=False)
class Additive:
    """Equations 1 and 2. A kind says what its `kind`, `rank` and `shape` are and makes its `product`.

    Attributes:
      strength: s of equation 1.
    """

    strength: float
    additive: ClassVar[bool] = True
    kind: ClassVar[str]

    @property
    def rank(self) -> int | None:
        return None

    @property
    def shape(self) -> Shape:
        """Of D, as the file has it."""
        raise NotImplementedError

    def product(self, like: np.ndarray) -> np.ndarray:
        """P, a new array in the dtype in which an array `like` this is changed."""
        raise NotImplementedError

    def check(self, shape: Shape) -> None:
        fit.check(self.shape, shape)

    def difference(self, weight: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """m D in the shape of `weight`, a new array; of the weight's numbers nothing is asked."""
        self.check(weight.shape)
        found = self.product(weight)
        found *= scale * self.strength
        return fit.fitted(found, weight.shape)

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        self.check(weight.shape)
        if scale == 0:
            return weight
        found = self.difference(weight, scale)
        found += weight
        return found

    def factors(self) -> tuple[np.ndarray, np.ndarray] | None:
        return None


@dataclass(frozen=True, eq=False)
class Offset(Additive):
    """A change with A1111's `bias` beside it: of the weight's own size, added to P before it is scaled."""

    inner: Additive
    offset: np.ndarray

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.inner.kind

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def shape(self) -> Shape:
        return self.inner.shape

    def product(self, like: np.ndarray) -> np.ndarray:
        found = self.inner.product(like)
        found += working(self.offset, like).reshape(found.shape)
        return found


def with_offset(parts: Parts, inner: Additive) -> Additive:
    """A change as it is, or with the `bias` that stands beside it."""
    if (offset := parts.maybe("bias")) is None:
        return inner
    if offset.size != np.prod(inner.shape):
        raise ValueError(f"bias is {list(offset.shape)}, and must have the size of the weight, {list(inner.shape)}")
    return Offset(inner.strength, inner, offset)
