"""Whole differences: of a weight, of a bias, of a norm; and a weight that stands in another's place.

    diff, w_norm          W + m diff           on the weight (of a norm: its scale)                         (1)
    diff_b, b_norm        b + m diff_b         on the bias; a layer without one has a bias of zeros         (2)
    set_weight            what it says, whatever W and m are, m = 0 excepted (ComfyUI)                      (3)

They have no alpha; where a file holds one beside `diff` it means nothing, as in A1111 and ComfyUI. `reshape_weight`
asks for a larger weight (tools for Flux), which no Stable Diffusion has room for.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds import fit
from sdjax.adapters.kinds.additive import Additive
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.parts import Kind, Parts, working
from sdjax.core.tree import Shape

DIFFERENCES = {"diff": ("weight", "diff"), "diff_b": ("bias", "diff"), "w_norm": ("weight", "norm"),
               "b_norm": ("bias", "norm")}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Full(Additive):
    """Equations 1 and 2."""

    change: np.ndarray
    label: str = "diff"

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.label

    @property
    def shape(self) -> Shape:
        return self.change.shape

    def product(self, like: np.ndarray) -> np.ndarray:
        return np.array(working(self.change, like))


@dataclass(frozen=True, eq=False)
class Replacement:
    """Equation 3."""

    value: np.ndarray
    kind: ClassVar[str] = "set"
    additive: ClassVar[bool] = False
    rank: ClassVar[None] = None

    def check(self, shape: Shape) -> None:
        fit.check(self.value.shape, shape)

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        self.check(weight.shape)
        if scale == 0:
            return weight
        return np.array(fit.fitted(working(self.value, weight), weight.shape))

    def factors(self) -> None:
        return None


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    if "reshape_weight" in parts:
        raise ValueError(
            "reshape_weight asks for a weight of another shape, as tools for Flux do: this is for no Stable Diffusion"
        )
    deltas: dict[str, Delta] = {}
    for name, (target, kind) in DIFFERENCES.items():
        if (change := parts.maybe(name)) is not None:
            if target in deltas:
                raise ValueError(f"{name} says once more what is done to the {target}")
            deltas[target] = Full(1.0, change, kind)
    if (value := parts.maybe("set_weight")) is not None:
        if "weight" in deltas:
            raise ValueError("set_weight says once more what is done to the weight")
        deltas["weight"] = Replacement(value)
    if "weight" in deltas:
        parts.number("alpha")
    return deltas


KIND = Kind((*DIFFERENCES, "set_weight", "reshape_weight"), ("alpha",), read)
