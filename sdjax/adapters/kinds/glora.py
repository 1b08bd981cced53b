"""GLoRA: a change of low rank, and a second one that is applied to the weight.

Chavan et al. 2023, arXiv:2306.07967, as LyCORIS has it, with s = alpha / r:

    F(W) = W + s (W A + B)          W A[o,i,y,x] = sum_j W[o,j,y,x] A[j,i]                                  (1)

    today's layout     A = a1 `i r`  a2 `r i`        B = b1 `o r`  b2 `r i` or `r i h w`                    (2)
    with `bm`          B[o,i,y,x] = sum_pq b1[o,p] bm[p,q,y,x] b2[q,i]
    the older one      A = a2 `i r`  a1 `r i`        B = b2 `o r`  b1 `r i`                                 (3)

Which of the two it is, the ranks tell; on a square weight both readings multiply, and the rank is the smaller one.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds import fit
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.lora import LoRA
from sdjax.adapters.kinds.parts import Kind, Parts, same_rank, working
from sdjax.adapters.kinds.relative import Relative
from sdjax.core.tree import Shape

NAMES = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


@dataclass(frozen=True, eq=False)
class GLoRA(Relative):
    """Equation 1.

    Attributes:
      left, right: A = left `i r` right `r i`. added: s B. strength: s.
    """

    left: np.ndarray
    right: np.ndarray
    added: LoRA
    strength: float
    kind: ClassVar[str] = "GLoRA"

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.added.rank

    def check(self, shape: Shape) -> None:
        fit.check(self.added.shape, shape)
        if len(self.left) != shape[1]:
            raise ValueError(f"it is for a weight of {len(self.left)} inputs, and this one is {list(shape)}")

    def full(self, weight: np.ndarray) -> np.ndarray:
        left, right = working(self.left, weight), working(self.right, weight)
        inputs_last = np.moveaxis(weight, 1, -1)
        found = np.moveaxis((inputs_last @ left) @ right, -1, 1) * weight.dtype.type(self.strength)
        found += self.added.difference(weight)
        found += weight
        return found


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    a1, a2 = parts.matrix("a1.weight"), parts.matrix("a2.weight")
    b1, b2, mid = parts.take("b1.weight"), parts.take("b2.weight"), parts.maybe("bm.weight")
    if any(one.ndim not in (2, 4) for one in (b1, b2)) or (mid is not None and mid.ndim != 4):
        raise ValueError("b1.weight and b2.weight must have 2 or 4 axes, and bm.weight 4")
    if _is_old(a1, a2, b1, b2, mid):
        a1, a2, b1, b2 = a2, a1, b2, b1
    if mid is not None:
        same_rank(**{"bm.weight": mid.shape[0], "bm.weight's second axis": mid.shape[1], "b2.weight": len(b2)})
    rank = len(a2)
    strength = parts.strength(rank)
    return {"weight": GLoRA(a1, a2, LoRA(strength, b1.reshape(b1.shape[:2]), b2, mid), strength)}


def _is_old(a1: np.ndarray, a2: np.ndarray, b1: np.ndarray, b2: np.ndarray, mid: np.ndarray | None) -> bool:
    """Whether they are in the layout of equation 3; raises ValueError where they are in neither."""
    new, old = _rank(a1, a2, b1, b2), _rank(a2, a1, b2, b1) if mid is None else None
    if new is not None and new == old:
        raise ValueError("a1, a2, b1, b2 are all square: nothing tells which of GLoRA's two layouts they are in")
    if new is None and old is None:
        raise ValueError(f"the ranks of {', '.join(NAMES)} do not fit, in either of GLoRA's layouts")
    return new is None or (old is not None and old < new)


def _rank(left: np.ndarray, right: np.ndarray, up: np.ndarray, down: np.ndarray) -> int | None:
    """r of equation 2, None where these do not fit it."""
    rank = len(right)
    fits = left.shape[1] == up.shape[1] == len(down) == rank and len(left) == right.shape[1] == down.shape[1]
    return rank if fits and math.prod(up.shape[2:]) == 1 else None


KIND = Kind(NAMES, ("bm.weight", "alpha", "scale"), read)
