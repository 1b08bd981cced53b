"""Rates: how far a step goes, as functions of the number n of steps done and of the declared end.

    r(n) = peak min(1, n / warmup) f(n)                                                                      (1)
    constant  f = 1
    linear    f = 1 - s                     s = (n - warmup) / (steps - warmup), from 0 to 1
    cosine    f = (1 + cos(pi s)) / 2       (Loshchilov & Hutter 2017, arXiv:1608.03983)
    warmup, stable, decay  f = 1, and down to 0 over the last `fall` steps (Hagele et al. 2024, arXiv:2405.18392)

n counts updates of the parameters and nothing else: neither the pieces that a gradient is accumulated over nor devices.
The end is part of the rate: a run that is to become longer under a rate that falls is another run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sdjax.core.errors import unknown

KINDS = ("constant", "linear", "cosine", "warmup_stable_decay")


@dataclass(frozen=True)
class Constant:
    """The peak, after the warm-up."""

    peak: float
    warmup: int = 0

    def __call__(self, n: int) -> float:
        return self.peak * _up(n, self.warmup)


@dataclass(frozen=True)
class Linear:
    """Down to 0 at `steps`, in a line."""

    peak: float
    steps: int
    warmup: int = 0

    def __call__(self, n: int) -> float:
        return self.peak * _up(n, self.warmup) * (1 - _part(n, self.warmup, self.steps))


@dataclass(frozen=True)
class Cosine:
    """Down to 0 at `steps`, in half a wave."""

    peak: float
    steps: int
    warmup: int = 0

    def __call__(self, n: int) -> float:
        return self.peak * _up(n, self.warmup) * (1 + math.cos(math.pi * _part(n, self.warmup, self.steps))) / 2


@dataclass(frozen=True)
class WarmupStableDecay:
    """Up to `peak` over `warmup` steps, constant, down to 0 over the last `fall` of `steps`.

    With fall 0 it stays for ever: a run at a constant rate can be ended whenever one likes.
    """

    peak: float
    steps: int
    fall: int
    warmup: int = 100

    def __call__(self, n: int) -> float:
        down = (self.steps - n) / self.fall if self.fall else 1.0
        return self.peak * max(0.0, min(1.0, _up(n, self.warmup), down))


def make_rate(kind: str, peak: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A rate by its name, one of KINDS; the last falls over a fifth of the steps. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(unknown(f"the rate {kind!r} is unknown", kind, KINDS))
    if not (peak > 0 and math.isfinite(peak)):
        raise ValueError(f"a learning rate must be above 0, not {peak!r}")
    if not 0 <= warmup < steps:
        raise ValueError(f"a warm-up of {warmup} steps does not fit into {steps} steps")
    if kind == "constant":
        return Constant(peak, warmup)
    if kind == "warmup_stable_decay":
        return WarmupStableDecay(peak, steps, max(1, steps // 5), warmup)
    return Linear(peak, steps, warmup) if kind == "linear" else Cosine(peak, steps, warmup)


def _up(n: int, warmup: int) -> float:
    return n / warmup if n < warmup else 1.0


def _part(n: int, warmup: int, steps: int) -> float:
    """What part of the way after the warm-up is done, 0 to 1."""
    return min(1.0, max(0.0, (n - warmup) / max(1, steps - warmup)))
