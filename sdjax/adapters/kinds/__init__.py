"""The kinds of adapters: what each does to a parameter (`delta`), a file a kind.

Read `delta` (the protocol), `parts` (how a module's tensors are taken), `fit` (for which weights a change is),
`additive` and `relative` (the two common halves), then any kind: `lora`, `dora` around it, `loha`, `lokr`, `full`
(differences, norms), `ia3`, `oft`, `peft_oft`, `glora`. A new kind is one file and one line in KINDS.
"""

from collections.abc import Mapping

import numpy as np

from sdjax.adapters.kinds import full, glora, ia3, loha, lokr, lora, oft, peft_oft
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.parts import CONVENTIONS, Kind, Parts
from sdjax.core.errors import unknown

# `full` comes last: the alpha that some files have beside a difference is that of the kind before it.
KINDS: tuple[Kind, ...] = (
    lora.KIND, loha.KIND, lokr.KIND, oft.KIND, peft_oft.KIND, glora.KIND, ia3.KIND, full.KIND,
)  # fmt: skip
SUFFIXES = tuple(dict.fromkeys(name for kind in KINDS for name in (*kind.marks, *kind.others)))


def read_module(tensors: Mapping[str, np.ndarray], convention: str = "a1111") -> dict[str, Delta]:
    """What one module's tensors do to its "weight" and its "bias".

    tensors: by canonical name without the module's, one of SUFFIXES. convention: one of CONVENTIONS, what a scale other
    than 1 means where tools disagree (DoRA, BOFT, `rescale`), and whether PEFT's OFT may be read.

    Raises ValueError, without the module's name, for a tensor that misses its partner, ranks that do not fit, one that
    is left over, an alpha of 0 or not finite, two kinds in one module. Multiplies nothing yet.
    """
    if convention not in CONVENTIONS:
        raise ValueError(unknown(f"convention {convention!r} is unknown", convention, CONVENTIONS))
    parts, deltas = Parts(tensors), dict[str, Delta]()
    for kind in KINDS:
        if any(mark in parts for mark in kind.marks):
            found = kind.read(parts, convention)
            if twice := [target for target in found if target in deltas]:
                kinds = f"{deltas[twice[0]].kind} and {found[twice[0]].kind}"
                raise ValueError(f"two kinds change its {twice[0]}, {kinds}: only one of them can be meant")
            deltas |= found
    if parts.left:
        read = sorted({delta.kind for delta in deltas.values()})
        whose = f"in {' and '.join(read)}" if read else "without the tensors that they belong to"
        raise ValueError(f"{', '.join(parts.left)}: nothing reads them {whose}")
    return deltas
