"""LoHa: the elementwise product of two products of low rank, whose rank may be the product of theirs.

Hyeon-Woo et al. 2021, arXiv:2108.06098, as LyCORIS has it. With a, b the two factors of w1 and w2,

    flat      P = (w1_a w1_b) * (w2_a w2_b)              wn_a `o r`, wn_b `r i` or `r ihw`                  (1)
    Tucker    P = X1 * X2,   Xn[o,i,y,x] = sum_pq tn[p,q,y,x] wn_a[p,o] wn_b[q,i]                           (2)

where in (2) `wn_a` is `r o`, the other way round than in (1). The rank is w1_b's first axis in both.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.additive import Additive, with_offset
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.dora import SCALES, decomposed
from sdjax.adapters.kinds.parts import Kind, Parts, same_rank, working
from sdjax.core.tree import Shape

MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")


@dataclass(frozen=True, eq=False)
class LoHa(Additive):
    """Equations 1 and 2.

    Attributes:
      pairs: (a, b) of w1 and of w2. cores: t1 and t2, or None.
    """

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    cores: tuple[np.ndarray, ...] | None
    kind: ClassVar[str] = "LoHa"

    @property
    def rank(self) -> int:
        return len(self.pairs[0][1])

    @property
    def shape(self) -> Shape:
        a, b = self.pairs[0]
        return (len(a), b.shape[1]) if self.cores is None else (a.shape[1], b.shape[1], *self.cores[0].shape[2:])

    def product(self, like: np.ndarray) -> np.ndarray:
        found = self._half(0, like)
        found *= self._half(1, like)
        return found

    def _half(self, which: int, like: np.ndarray) -> np.ndarray:
        a, b = (working(one, like) for one in self.pairs[which])
        return a @ b if self.cores is None else tucker(working(self.cores[which], like), a, b)


def tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equation 2's X: core `p q h w`, a `p o`, b `q i` -> `o i h w`."""
    half = a.T @ core.reshape(len(core), -1)
    half = half.reshape(len(half), *core.shape[1:])
    return np.ascontiguousarray(np.tensordot(half, b, (1, 0)).transpose(0, 3, 1, 2))


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    w1_a, w1_b, w2_a, w2_b = (parts.matrix(name) for name in MATRICES)
    cores = tuple(parts.take(name) for name in CORES) if any(name in parts for name in CORES) else None
    inner = 1 if cores is None else 0  # the axis of w_a that is the rank
    ranks = {"hada_w1_a": w1_a.shape[inner], "hada_w1_b": len(w1_b)}
    other = {"hada_w2_a": w2_a.shape[inner], "hada_w2_b": len(w2_b)}
    if cores is not None:
        if any(core.ndim != 4 for core in cores) or cores[0].shape[2:] != cores[1].shape[2:]:
            raise ValueError("hada_t1 and hada_t2 must have 4 axes, the last two of the same sizes")
        (ranks["hada_t1"], ranks["hada_t1's second axis"]) = cores[0].shape[:2]
        (other["hada_t2"], other["hada_t2's second axis"]) = cores[1].shape[:2]
    same_rank(**ranks)
    same_rank(**other)
    outer = 1 - inner
    if (w1_a.shape[outer], w1_b.shape[1]) != (w2_a.shape[outer], w2_b.shape[1]):
        raise ValueError("hada_w1_a hada_w1_b and hada_w2_a hada_w2_b are of different sizes")
    found = LoHa(parts.strength(len(w1_b)), ((w1_a, w1_b), (w2_a, w2_b)), cores)
    return {"weight": decomposed(parts, with_offset(parts, found), convention)}


KIND = Kind((*MATRICES, *CORES), ("alpha", "scale", "bias", *SCALES), read)
