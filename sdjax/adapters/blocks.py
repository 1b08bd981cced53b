"""How strongly an adapter counts in each block of a U-Net: lists, names and rules.

A1111's "LoRA Block Weight" counts blocks as the original code does (`sgm`): IN00 .. are `input_blocks.0` .., M00 is the
whole middle, OUT00 .. are `output_blocks.0` .., and BASE stands for all text encoders. Its lists are told by length:

    26   BASE  IN00-IN11                          M00  OUT00-OUT11      SD 1 and 2, every block             (1)
    17   BASE  IN01 IN02 IN04 IN05 IN07 IN08      M00  OUT03-OUT11      those of them that attend           (2)
    20   BASE  IN00-IN08                          M00  OUT00-OUT08      SDXL, every block                   (3)
    12   BASE  IN04 IN05 IN07 IN08                M00  OUT00-OUT05      those of them that attend           (4)

A block that a short list leaves out counts 0. What is in no block (the time's and the labels' embedding, the last
convolution) counts 1. Its names are lists (2). Those that say no more than "all", "none", "all in" and "all out" are
lists (4) for SDXL; the others mean blocks that SDXL does not have.

A rule names modules by the beginning of their path, by a pattern, or by block, and the longest that fits counts:
{"down_blocks.1": 0.5, "*.attn2.*": 1.0, "OUT03": 0.2, "text_encoder": 0.0}. What none fits counts 1.
"""

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdjax.adapters.sgm import sgm_modules
from sdjax.core.errors import unknown
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.weights import ldm

BASE, MIDDLE = "BASE", "M00"


def _order(inputs: Sequence[int], outputs: Sequence[int]) -> tuple[str, ...]:
    return (BASE, *(f"IN{n:02}" for n in inputs), MIDDLE, *(f"OUT{n:02}" for n in outputs))


ORDERS = {
    len(order): order
    for order in (
        _order(range(12), range(12)),
        _order((1, 2, 4, 5, 7, 8), range(3, 12)),
        _order(range(9), range(9)),
        _order((4, 5, 7, 8), range(6)),
    )
}
# By the number of blocks on each way: how long the lists are that fit them.
LENGTHS = {12: (26, 17), 9: (20, 12)}
WHOLE = {  # names that mean the same for every family: base, in, middle, out
    "NONE": (0.0, 0.0, 0.0, 0.0),
    "ALL": (1.0, 1.0, 1.0, 1.0),
    "ALL0.5": (0.5, 0.5, 0.5, 0.5),
    "INALL": (1.0, 1.0, 0.0, 0.0),
    "OUTALL": (1.0, 0.0, 0.0, 1.0),
}
PARTIAL = {  # lists (2)
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
}
NAMES = (*WHOLE, *PARTIAL)

# With two resnets a level, as SD 1, 2 and XL have, the blocks' numbers are the same for any number of levels.
_USUAL = ldm.unet_words([2] * 4, [True] * 4)
_BLOCK = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\..*")


@dataclass(frozen=True)
class BlockWeights:
    """A factor for every module of a model: `weights(component, path)`.

    Attributes:
      name: of NAMES, or None. numbers: a list's, by block; None for a rule.
      rules: (beginning, pattern or block; factor), the longest first.
      scale: what all is multiplied by. modules: a U-Net's original names by ours, where `of` was told of one.
    """

    name: str | None = None
    numbers: Mapping[str, float] | None = None
    rules: tuple[tuple[str, float], ...] = ()
    scale: float = 1.0
    modules: Mapping[str, str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def read(cls, value: Any, scale: float = 1.0) -> "BlockWeights":
        """From one of NAMES, a list of 12, 17, 20 or 26 numbers (or their text, joined by commas), or a rule.

        Raises ValueError for anything else. For which family a list is, and whether a rule fits anything, `of` checks.
        """
        number = _number(scale, "scale")
        if isinstance(value, str):
            if value.strip().upper() in NAMES:
                return cls(value.strip().upper(), _named(value.strip().upper(), 17), (), number)
            if "," not in value:
                raise ValueError(unknown(f"block weights {short(value)} are unknown", value.upper(), NAMES))
            value = [_parsed(one) for one in value.split(",")]
        if isinstance(value, Mapping):
            rules = [(key, _number(one, f"block weights: {short(key)}")) for key, one in value.items()]
            if not rules or not all(isinstance(key, str) and key for key, _ in rules):
                raise ValueError('block weights by rule are a mapping as {"down_blocks.1": 0.5}, one entry at least')
            return cls(None, None, tuple(sorted(rules, key=lambda rule: -len(rule[0]))), number)
        if isinstance(value, list | tuple | np.ndarray):
            numbers = [_number(one, f"block weights: number {i + 1}") for i, one in enumerate(value)]
            return cls(None, _listed(numbers), (), number)
        raise ValueError(
            f"block weights are a name, a list or a mapping, not {short(value)}; names: {', '.join(NAMES)}"
        )

    def of(self, unet: Mapping[str, Any]) -> "BlockWeights":
        """The same for this U-Net, by its tree of parameters: its own blocks, and a name as it means them.

        Raises ValueError where a list is for another family, or a rule fits nothing.
        """
        modules = sgm_modules(unet)
        found = replace(self, modules=modules)
        if self.numbers is None:
            for key, _ in self.rules:
                if not found._fits_any(key):
                    known = sorted({path.rsplit(".", 1)[0] for path in modules} | {"text_encoder", "text_encoder_2"})
                    raise ValueError(
                        unknown(f"block weights: {short(key)} fits no module", key, known, "see sd.params")
                    )
            return found
        count = sum(block.startswith("IN") for block in {_block(name) or "" for name in modules.values()})
        lengths = LENGTHS.get(count, ())
        if self.name in WHOLE and 12 in lengths:
            return replace(found, numbers=_named(self.name, 12))
        if len(self.numbers) not in lengths and self.name not in ("NONE", "ALL", "ALL0.5"):
            told = f"lists of {' or '.join(map(str, lengths))}" if lengths else "rules alone"
            what = self.name or f"a list of {len(self.numbers)}"
            raise ValueError(
                f"block weights: {what} is for another family: this U-Net has {count} blocks on its way down, "
                f"and takes {told}, or ALL, NONE" + (", INALL, OUTALL" if 12 in lengths else "")
            )
        return found

    def __call__(self, component: str, path: str) -> float:
        """The factor of one module; path: its own in its component, joined by dots."""
        block = self.block(component, path)
        if self.numbers is not None:
            if self.name in ("NONE", "ALL", "ALL0.5"):
                return self.scale * WHOLE[self.name][0]
            return self.scale * (1.0 if block is None else self.numbers.get(block, 0.0))
        for key, factor in self.rules:
            if _fits(key, component, path, block):
                return self.scale * factor
        return self.scale

    def block(self, component: str, path: str) -> str | None:
        """The block that a module is in: "BASE", "IN04", "M00", "OUT11"; None where it is in none."""
        if component != "unet":
            return BASE
        known = self.modules or {}
        return _block(known[path] if path in known else ldm.renamed(f"{path}.", _USUAL))

    def __str__(self) -> str:
        """As `read` takes it, but for a rule's own writing."""
        if self.name is not None:
            said = self.name
        elif self.numbers is not None:
            said = ",".join(f"{one:g}" for one in self.numbers.values())
        else:
            said = ",".join(f"{key}={factor:g}" for key, factor in self.rules)
        return said if self.scale == 1 else f"{said}*{self.scale:g}"

    def _fits_any(self, key: str) -> bool:
        text = any(_fits(key, component, "", BASE) for component in ("text_encoder", "text_encoder_2"))
        return text or any(_fits(key, "unet", path, self.block("unet", path)) for path in self.modules or ())


def _fits(key: str, component: str, path: str, block: str | None) -> bool:
    """Whether a rule's key means a module: by its block, its path's beginning, or a pattern for all of it."""
    if key == block:
        return True
    full = f"{component}.{path}"
    return any(f"{name}.".startswith(f"{key}.") or fnmatch.fnmatchcase(name, key) for name in (path, full) if name)


def _block(name: str) -> str | None:
    """The block of a module by its original name."""
    if (found := _BLOCK.fullmatch(f"{name}.")) is None:
        return None
    side, number = found[1], int(found[2])
    return MIDDLE if side == "middle_block" else f"{'IN' if side == 'input_blocks' else 'OUT'}{number:02}"


def _named(name: str, length: int) -> dict[str, float]:
    """A name as a list of this length."""
    if name in PARTIAL:
        return _listed([float(one) for one in PARTIAL[name].split(",")])
    base, down, middle, up = WHOLE[name]
    sides = {"B": base, "I": down, "M": middle, "O": up}
    return {block: sides[block[0]] for block in ORDERS[length]}


def _listed(numbers: Sequence[float]) -> dict[str, float]:
    if len(numbers) not in ORDERS:
        raise ValueError(
            f"block weights are a list of 17 or 26 numbers for SD 1 and 2, of 12 or 20 for SDXL, not of {len(numbers)}"
        )
    return dict(zip(ORDERS[len(numbers)], numbers, strict=True))


def _number(value: Any, what: str) -> float:
    if not is_number(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, not {short(value)}")
    return float(value)


def _parsed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        random = " (random numbers would give another picture each time)" if text.strip() in ("R", "U") else ""
        raise ValueError(f"block weights: {short(text.strip())} is no number{random}") from None
