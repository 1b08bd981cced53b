"""Slots: low-rank adapters side by side, beside the kernels of one network.

Adapter a adds m_a B_a A_a to a kernel. With the factors of all adapters of a batch laid side by side,

    A = [A_1 A_2 ..]    B = [B_1; B_2; ..]    y = x K + ((x A) s) B                                         (1)

where picture b's s holds m_1 at A_1's columns, m_2 at A_2's and so on, and 0 where it does not wear one: each picture
has its own sum of adapters, at its own strengths, in the same two thin products (nn.linear has equation 1).

A program depends on the shapes alone. So the number of columns is filled up with zeros to one of SIZES; and where some
kernels of a kind are touched, all of that kind get factors, zeros where no adapter touches them. There are two kinds:
the transformers' layers, which is what most adapters touch; or every layer of the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.fit import factors_for
from sdjax.core import tree
from sdjax.nn.linear import LowRank

# Ranks side by side. Every sum of ranks up to the first is one program; more than the last are refused.
SIZES = (64, 128, 256, 512)

Factors = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by module path: (down `r i` or `r i h w`, up `o r`)


@dataclass(frozen=True, eq=False)
class Slots:
    """Where each of several adapters lies in one network.

    Attributes:
      factors: of each adapter. columns: (first, end) of each among the ranks side by side. size: r, filled up.
      everywhere: whether layers beside the transformers' are touched.
    """

    factors: tuple[Factors, ...]
    columns: tuple[tuple[int, int], ...]
    size: int
    everywhere: bool

    @classmethod
    def of(cls, factors: Sequence[Factors]) -> "Slots | None":
        """For these adapters, in this order; None where none of them touches the network.

        Raises ValueError where their ranks are more than the last of SIZES.
        """
        ranks = [max((down.shape[0] for down, _ in own.values()), default=0) for own in factors]
        ends = np.cumsum(ranks).tolist()
        if not ends or not ends[-1]:
            return None
        if ends[-1] > SIZES[-1]:
            raise ValueError(
                f"adapters of ranks {', '.join(map(str, ranks))} are {ends[-1]} ranks beside each other, and a batch "
                f"wears at most {SIZES[-1]}: merge some by sd.with_adapters([(adapter, scale)]), or make them thinner "
                "by sdjax.adapters.resize(adapter, rank)"
            )
        columns = tuple(zip([0, *ends[:-1]], ends, strict=True))
        everywhere = any(not in_transformer(path) for own in factors for path in own)
        return cls(tuple(factors), columns, min(size for size in SIZES if size >= ends[-1]), everywhere)

    def strengths(self, scales: np.ndarray) -> np.ndarray:
        """Each adapter's scale at its columns: `.. adapters` -> float32 `.. r`."""
        made = np.zeros((*scales.shape[:-1], self.size), np.float32)
        for i, (first, end) in enumerate(self.columns):
            made[..., first:end] = scales[..., i, None]
        return made

    def beside(self, params: Mapping[str, Any], dtype: DTypeLike) -> dict[str, LowRank]:
        """The factors beside each kernel of a network, by its module's path, on the host in `dtype`."""
        made = {}
        for path, leaf in tree.flatten(params).items():
            module = ".".join(path[:-1])
            if path[-1] == "kernel" and (self.everywhere or in_transformer(module)):
                made[module] = self._beside(module, tuple(leaf.shape), np.dtype(dtype))
        return made

    def _beside(self, module: str, shape: tuple[int, ...], dtype: np.dtype) -> LowRank:
        """Equation 1's A and B for a kernel of this shape, `i o` or HWIO."""
        down = np.zeros((*shape[:-1], self.size), dtype)
        up = np.zeros((self.size, shape[-1]), dtype)
        for own, (first, _) in zip(self.factors, self.columns, strict=True):
            if module in own:
                thin, wide = own[module]
                last = first + thin.shape[0]
                down[..., first:last] = _as_kernel(thin)
                up[first:last] = wide.reshape(wide.shape[0], -1).T
        return LowRank(down, up)


def attach(params: Mapping[str, Any], beside: Mapping[str, LowRank]) -> dict[str, Any]:
    """A network's parameters with factors beside the kernels of those modules; nothing is copied."""
    flat = tree.flatten(params)
    for path in list(flat):
        if path[-1] == "kernel" and (found := beside.get(".".join(path[:-1]))) is not None:
            flat[(*path[:-1], "low_rank")] = found
    return tree.unflatten(flat)


def in_transformer(module: str) -> bool:
    """Whether a module stands in a transformer, the U-Net's or a text encoder's: what most adapters touch."""
    words = module.split(".")
    return "attentions" in words or "self_attn" in words or "mlp" in words


def _as_kernel(down: np.ndarray) -> np.ndarray:
    """`r i` as `i r`, or `r i h w` as `h w i r`."""
    return down.T if down.ndim == 2 else down.transpose(2, 3, 1, 0)


def factors_of(deltas: Mapping[str, Mapping[str, Delta]], params: Mapping[str, Any]) -> Factors:
    """The exact factors of what an adapter does to one network, by module path, in the shapes of its kernels.

    Raises ValueError where it does more than factors say.
    """
    kernels = {".".join(path[:-1]): leaf for path, leaf in tree.flatten(params).items() if path[-1] == "kernel"}
    made = {}
    for module, by_leaf in deltas.items():
        for leaf, delta in by_leaf.items():
            found = None
            if leaf == "kernel":
                *size, inputs, outputs = kernels[module].shape
                found = factors_for(delta, (outputs, inputs, *size))
            if found is None:
                what = delta.kind if leaf == "kernel" else f"{delta.kind} of its {leaf}"
                raise ValueError(
                    f"{module} is changed by {what}, which has no low-rank factors to be worn: merge it by "
                    "sd.with_adapters([(adapter, scale)])"
                )
            made[module] = found
    return made
