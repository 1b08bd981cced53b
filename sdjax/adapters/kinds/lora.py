"""LoRA and LoCon: a change of low rank, as the product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685, for linear layers; for convolutions kohya's and LyCORIS' "LoCon". With r the rank, the
first axis of `down`, and alpha / r in front,

    linear, 1x1     P[o,i]     = sum_q up[o,q] down[q,i]                                                    (1)
    convolution     P[o,i,y,x] = sum_q up[o,q] down[q,i,y,x]                                                (2)
    with mid        P[o,i,y,x] = sum_pq up[o,p] mid[p,q,y,x] down[q,i]                                      (3)

`mid`'s first axis meets `up`, its second `down`. Contracted with `down` it is equation 2 again, so (3) is of low rank
too. `lora_up.bias`, of PEFT's `lora_bias`, goes to the layer's own bias by the same strength.
"""

from dataclasses import dataclass

import numpy as np

from sdjax.adapters.kinds.additive import Additive, with_offset
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.dora import SCALES, decomposed
from sdjax.adapters.kinds.full import Full
from sdjax.adapters.kinds.parts import Kind, Parts, same_rank, working
from sdjax.core.tree import Shape


@dataclass(frozen=True, eq=False)
class LoRA(Additive):
    """Equations 1 to 3.

    Attributes:
      up: `o r`. down: `r i` or `r i h w`. mid: `r r h w` or None.
    """

    up: np.ndarray
    down: np.ndarray
    mid: np.ndarray | None = None

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "LoCon" if self.mid is not None or self.down.shape[2:] not in ((), (1, 1)) else "LoRA"

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> Shape:
        spatial = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (len(self.up), self.down.shape[1], *spatial)

    def product(self, like: np.ndarray) -> np.ndarray:
        down = self._whole_down(working(self.down, like))
        found = working(self.up, like) @ down.reshape(len(down), -1)
        return found.reshape(self.shape)

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        wide = np.result_type(*(np.float64 if one.dtype == np.float64 else np.float32 for one in (self.up, self.down)))
        up = self.up.astype(wide) * wide.type(self.strength)
        return self._whole_down(self.down.astype(wide)), up

    def _whole_down(self, down: np.ndarray) -> np.ndarray:
        """`down` with `mid`, if there is one, contracted into it: `r i h w`, r being what `up` takes."""
        if self.mid is None:
            return down
        mid = self.mid.astype(down.dtype)
        return np.einsum("pqyx,qi->piyx", mid, down.reshape(down.shape[:2]), optimize=True)


def lora(parts: Parts) -> LoRA:
    """A LoRA from its tensors; raises ValueError where they do not go together."""
    up = parts.matrix("lora_up.weight")
    mid = parts.maybe("lora_mid.weight")
    down = parts.matrix("lora_down.weight") if mid is not None else parts.take("lora_down.weight")
    if down.ndim not in (2, 4):
        raise ValueError(f"lora_down.weight is {list(down.shape)}, and must have 2 or 4 axes")
    if mid is not None and mid.ndim != 4:
        raise ValueError(f"lora_mid.weight is {list(mid.shape)}, and must have 4 axes")
    between = {} if mid is None else {"lora_mid.weight": mid.shape[0], "lora_mid.weight's second axis": mid.shape[1]}
    same_rank(**{"lora_up.weight": up.shape[1], **between, "lora_down.weight": len(down)})
    return LoRA(parts.strength(len(down)), up, down, mid)


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    found = lora(parts)
    deltas: dict[str, Delta] = {"weight": decomposed(parts, with_offset(parts, found), convention)}
    if (bias := parts.maybe("lora_up.bias")) is not None:
        deltas["bias"] = Full(found.strength, bias, "LoRA")
    return deltas


KIND = Kind(
    ("lora_up.weight", "lora_down.weight", "lora_mid.weight"),
    ("alpha", "scale", "bias", "lora_up.bias", *SCALES),
    read,
)
