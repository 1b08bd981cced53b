"""LoKr: a Kronecker product, whose factors may be products of low rank themselves.

Edalati et al. 2022, arXiv:2212.10650, as LyCORIS has it. Block (u, v) of P is w1[u,v] w2:

    P[u o2 + p, v i2 + q, y, x] = w1[u,v] w2[p,q,y,x]         w1 `o1 i1`, w2 `o2 i2` or `o2 i2 h w`         (1)

    w1 = lokr_w1   or   lokr_w1_a `o1 r`  lokr_w1_b `r i1`                                                  (2)
    w2 = lokr_w2   or   lokr_w2_a `o2 r`  lokr_w2_b `r i2` or `r i2hw`
         or  w2[p,q,y,x] = sum_ab lokr_t2[a,b,y,x] lokr_w2_a[a,p] lokr_w2_b[b,q]   (`r o2`, `r i2`)         (3)

In front stands alpha / r with r the rank of w2 where it is factored, else of w1. Where both are whole it is 1 and alpha
means nothing, whatever it says.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.additive import Additive, with_offset
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.dora import SCALES, decomposed
from sdjax.adapters.kinds.loha import tucker
from sdjax.adapters.kinds.parts import Kind, Parts, same_rank, working
from sdjax.core.tree import Shape

MARKS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclass(frozen=True, eq=False)
class Factor:
    """One side of the Kronecker product, equations 2 and 3: a whole tensor alone, or its factors and their core.

    Attributes:
      tensors: (whole,), (a, b) or (core, a, b).
    """

    tensors: tuple[np.ndarray, ...]

    @property
    def rank(self) -> int | None:
        return len(self.tensors[-1]) if len(self.tensors) > 1 else None

    @property
    def shape(self) -> Shape:
        match self.tensors:
            case (whole,):
                return whole.shape
            case (a, b):
                return (len(a), b.shape[1])
            case (core, a, b):
                return (a.shape[1], b.shape[1], *core.shape[2:])
        raise AssertionError

    def whole(self, like: np.ndarray) -> np.ndarray:
        match tuple(working(one, like) for one in self.tensors):
            case (whole,):
                return whole
            case (a, b):
                return a @ b
            case (core, a, b):
                return tucker(core, a, b)
        raise AssertionError


@dataclass(frozen=True, eq=False)
class LoKr(Additive):
    """Equation 1."""

    w1: Factor
    w2: Factor
    kind: ClassVar[str] = "LoKr"

    @property
    def rank(self) -> int | None:
        return rank_of(self.w1, self.w2)

    @property
    def shape(self) -> Shape:
        (o1, i1), (o2, i2, *spatial) = self.w1.shape, self.w2.shape
        return (o1 * o2, i1 * i2, *spatial)

    def product(self, like: np.ndarray) -> np.ndarray:
        w1, w2 = self.w1.whole(like), self.w2.whole(like)
        return np.multiply(w1[:, None, :, None, None], w2.reshape(1, len(w2), 1, w2.shape[1], -1)).reshape(self.shape)


def rank_of(w1: Factor, w2: Factor) -> int | None:
    """That by which alpha is divided; None where it means nothing."""
    return w2.rank or w1.rank


def factor(parts: Parts, name: str, may_be_4d: bool = False) -> Factor:
    """w1 or w2 from its tensors; raises ValueError where they do not go together."""
    if name in parts:
        whole = parts.take(name) if may_be_4d else parts.matrix(name)
        if whole.ndim not in (2, 4):
            raise ValueError(f"{name} is {list(whole.shape)}, and must have 2 or 4 axes")
        return Factor((whole,))
    if f"{name}_a" not in parts and f"{name}_b" not in parts:
        raise ValueError(f"{name}, or {name}_a with {name}_b, is missing beside {', '.join(parts.names)}")
    a, b = parts.matrix(f"{name}_a"), parts.matrix(f"{name}_b")
    core = parts.maybe("lokr_t2") if may_be_4d else None
    if core is None:
        same_rank(**{f"{name}_a": a.shape[1], f"{name}_b": len(b)})
        return Factor((a, b))
    if core.ndim != 4:
        raise ValueError(f"lokr_t2 is {list(core.shape)}, and must have 4 axes")
    same_rank(
        **{f"{name}_a": len(a), f"{name}_b": len(b), "lokr_t2": core.shape[0], "lokr_t2's second axis": core.shape[1]}
    )
    return Factor((core, a, b))


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    w1, w2 = factor(parts, "lokr_w1"), factor(parts, "lokr_w2", may_be_4d=True)
    rank = rank_of(w1, w2)
    if rank is None:
        parts.number("alpha")
        scale = parts.number("scale")
        strength = 1.0 if scale is None else scale
    else:
        strength = parts.strength(rank)
    return {"weight": decomposed(parts, with_offset(parts, LoKr(strength, w1, w2)), convention)}


KIND = Kind(MARKS, ("alpha", "scale", "bias", *SCALES), read)
