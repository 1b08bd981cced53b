"""What stands beside a network's kernels (see `linear`), and how strongly each picture of a batch wears it.

Factors are parameters, the same for all pictures; strengths are data, each picture's own. So a batch whose pictures
wear different adapters is one program: the factors of all of them lie side by side, and a picture's strengths are zero
at the ranks that it does not wear.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax

from sdjax.core.tree import Params
from sdjax.nn.hypernetwork import HypernetworkLayer
from sdjax.nn.linear import LowRank


class Strengths(NamedTuple):
    """How strongly each of b pictures wears what a network has beside its kernels; None where it has none of that."""

    ranks: Any = None  # float32 `b r`, of each rank that lies side by side in every LowRank
    hypernetworks: Any = None  # float32 `b k`, of each of k hypernetworks in turn


def wearing(params: Params, strengths: Strengths | None) -> Params:
    """A network's parameters whose LowRank and hypernetworks have these strengths; None changes nothing.

    One picture's strengths, `r` and `k`, count for whatever the network is given.
    """
    if strengths is None:
        return params

    def one(leaf: Any) -> Any:
        if isinstance(leaf, LowRank):
            return replace(leaf, scale=strengths.ranks)
        if isinstance(leaf, HypernetworkLayer) and leaf.index is not None:
            return replace(leaf, scale=strengths.hypernetworks[..., leaf.index])
        return leaf

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, LowRank | HypernetworkLayer))
