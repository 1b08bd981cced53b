"""IA3: every output, or every input, of a layer is made a little stronger or weaker.

Liu et al. 2022, arXiv:2205.05638, as LyCORIS has it:

    W'[o, i, ..] = W[o, i, ..] (1 + m w[o])    or, where `on_input` is 1,    (1 + m w[i])                   (1)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.parts import Kind, Parts, working
from sdjax.adapters.kinds.relative import Relative
from sdjax.core.tree import Shape


@dataclass(frozen=True, eq=False)
class IA3(Relative):
    """Equation 1; axis: 0, outputs, or 1, inputs."""

    weight: np.ndarray
    axis: int
    kind: ClassVar[str] = "IA3"
    rank: ClassVar[None] = None  # type: ignore[misc]

    def check(self, shape: Shape) -> None:
        if len(shape) not in (2, 4) or self.weight.size != shape[self.axis]:
            what = ("outputs", "inputs")[self.axis]
            raise ValueError(f"it is for a weight of {self.weight.size} {what}, and this one is {list(shape)}")

    def full(self, weight: np.ndarray) -> np.ndarray:
        places = [-1 if axis == self.axis else 1 for axis in range(weight.ndim)]
        return weight * (1 + working(self.weight, weight).reshape(places))


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    weight, on_input = parts.take("weight"), parts.number("on_input")
    if on_input is None:
        raise ValueError("on_input is missing beside weight: without it nothing tells inputs from outputs")
    if on_input not in (0, 1):
        raise ValueError(f"on_input is {on_input}, and must be 0 or 1")
    if weight.size != max(weight.shape):
        raise ValueError(f"weight is {list(weight.shape)}, and must be a number for every output, or every input")
    return {"weight": IA3(weight, int(on_input))}


KIND = Kind(("weight", "on_input"), (), read)
