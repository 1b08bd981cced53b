"""PEFT's OFT, which turns what goes into a layer, where all others turn what comes out.

`oft_R.weight` is `n e`, the upper triangles of n skew matrices Q of s x s, e = s (s - 1) / 2. With N = ihw inputs in
blocks of s (one block for all of them where n = 1),

    R = I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4             PEFT's default: (I + Q) (I - Q)^-1 cut off                (1)
    F(W)[o, k s + p] = sum_q R[k][p,q] W[o, k s + q]                                                        (2)

Whether a file was trained with (1) or with the whole of it stands in its adapter_config.json (`use_cayley_neumann`, of
which the default has changed) and not in its tensors. So it is read where the caller says `convention="peft"`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.parts import Kind, Parts, working
from sdjax.adapters.kinds.relative import Relative
from sdjax.core.tree import Shape


@dataclass(frozen=True, eq=False)
class InputOFT(Relative):
    """Equations 1 and 2; triangles: `n e`. size: s."""

    triangles: np.ndarray
    size: int
    kind: ClassVar[str] = "OFT (PEFT)"
    rank: ClassVar[None] = None  # type: ignore[misc]

    def check(self, shape: Shape) -> None:
        inputs, n = math.prod(shape[1:]), len(self.triangles)
        if len(shape) not in (2, 4) or inputs % self.size or n not in (1, inputs // self.size):
            raise ValueError(f"it is for a weight of {n} blocks of {self.size} inputs, and this one is {list(shape)}")

    def full(self, weight: np.ndarray) -> np.ndarray:
        q = np.zeros((len(self.triangles), self.size, self.size), weight.dtype)
        rows, columns = np.triu_indices(self.size, 1)
        q[:, rows, columns] = working(self.triangles, weight)
        q -= q.swapaxes(1, 2)
        square = q @ q
        rotation = np.eye(self.size, dtype=q.dtype) + 2 * (q + square) + 2 * (square @ q) + square @ square
        blocks = weight.reshape(len(weight), -1, self.size).swapaxes(0, 1)
        return np.matmul(blocks, rotation.swapaxes(1, 2)).swapaxes(0, 1).reshape(weight.shape)


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    triangles = parts.take("oft_R.weight")
    size = (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2 if triangles.ndim == 2 else 0
    if triangles.ndim != 2 or size * (size - 1) // 2 != triangles.shape[1]:
        raise ValueError(f"oft_R.weight is {list(triangles.shape)}, and must be the upper triangles of square blocks")
    if convention != "peft":
        raise ValueError(
            "oft_R.weight is PEFT's OFT, and its tensors do not say whether it was trained with the exact rotation or "
            "with PEFT's series of 5 terms: for the series (use_cayley_neumann in its adapter_config.json, the default "
            "today) read it with convention='peft'; else merge it with PEFT and extract the difference"
        )
    return {"weight": InputOFT(triangles, size)}


KIND = Kind(("oft_R.weight",), (), read)
