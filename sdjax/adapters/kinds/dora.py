"""DoRA: the length of every row (or column) of the changed weight is a number of its own.

Liu et al. 2024, arXiv:2402.09353. Around any additive change D (alpha / r in it), with |.| the norm along all axes but
one, which is the outputs' or the inputs' and is told by the shape of the lengths c,

    M = W + D     g = c / |M|                                                                               (1)

Tools agree at scale 1, W' = g M, and nowhere else:

    a1111      W' = W + m (g M - W)                     ours, as A1111 (and ComfyUI, but for a bug of it)   (2)
    lycoris    W' = M (1 + m (g - 1))                   D at full strength whatever m is                    (3)
    peft       W' = c M' / |M'|    M' = W + m D         lengths at full strength whatever m is              (4)

Only (2) tends to W for m to 0. LyCORIS writes lengths `1 i` (until 2025) and `o 1` (since); PEFT `o`, and `1 o 1 1` for
a convolution, where LyCORIS' `1 i 1 1` is another thing: there the tensor's name tells.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.additive import Additive
from sdjax.adapters.kinds.parts import Parts, working
from sdjax.core.tree import Shape

LYCORIS, PEFT = "dora_scale", "lora_magnitude_vector"
SCALES = (LYCORIS, PEFT)


@dataclass(frozen=True, eq=False)
class DoRA:
    """Equations 1 to 4.

    Attributes:
      inner: D. lengths: c as the file has it. name: of its tensor. convention: which of equations 2 to 4.
    """

    inner: Additive
    lengths: np.ndarray
    name: str
    convention: str
    additive: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return "DoRA" if self.inner.kind in ("LoRA", "LoCon") else f"DoRA of {self.inner.kind}"

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    def check(self, shape: Shape) -> None:
        self.inner.check(shape)
        self.axis(shape)

    def axis(self, shape: Shape) -> int:
        """The axis of W that has a length for each of its places: 0, the outputs, or 1, the inputs."""
        own, (o, i) = self.lengths.shape, shape[:2]
        of_inputs = len(own) > 1 and own[0] == 1 and own[1] == self.lengths.size == i
        of_outputs = self.lengths.size == o and (own[0] == o or own[1:2] == (o,))
        if of_outputs and (own[0] == o or self.name == PEFT or not of_inputs):
            return 0
        if of_inputs:
            return 1
        raise ValueError(f"{self.name} is {list(own)}, and the weight {list(shape)} has {o} outputs and {i} inputs")

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        self.check(weight.shape)
        if scale == 0:
            return weight
        moved = self.inner.difference(weight, scale if self.convention == "peft" else 1.0)
        moved += weight
        growth = self._growth(moved)
        if self.convention == "lycoris":
            growth = 1 + scale * (growth - 1)
        moved *= growth
        if self.convention == "a1111" and scale != 1:
            moved -= weight
            moved *= scale
            moved += weight
        return moved

    def factors(self) -> None:
        return None

    def _growth(self, moved: np.ndarray) -> np.ndarray:
        """g of equation 1, as it multiplies; 0 where a row is nothing, which no length can change."""
        axis = self.axis(moved.shape)
        rows = np.moveaxis(moved, axis, 0).reshape(moved.shape[axis], -1)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        lengths = working(self.lengths, moved).reshape(-1)
        growth = np.divide(lengths, norms, out=np.zeros_like(norms), where=norms > 0)
        return growth.reshape([-1 if one == axis else 1 for one in range(moved.ndim)])


def decomposed(parts: Parts, inner: Additive, convention: str) -> "Additive | DoRA":
    """A change as it is, or, where lengths stand beside it, as they have it."""
    names = [name for name in SCALES if name in parts]
    if len(names) > 1:
        raise ValueError(f"{LYCORIS} and {PEFT} say the same thing twice: one is enough")
    return DoRA(inner, parts.take(names[0]), names[0], convention) if names else inner
