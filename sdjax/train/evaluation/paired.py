"""Paired tests: two models asked the same, with the same seeds, and whether they differ by more than chance.

Of n pictures that are right or wrong, those count on which the models differ: b of them only the first has right, c
only the second. If neither is better each of these b + c is a toss of a coin (McNemar 1947; exact, two-sided):

    p = min(1, 2 sum over k <= min(b, c) of C(b + c, k) / 2^(b + c))                                           (1)

Of numbers, as losses or scores, the differences are drawn again with replacement, n of n, many times: the mean of each
draw, and between which two of these 95 % lie (Efron 1979, percentile). Such a test needs about a tenth of the pictures
that two separate intervals do, where what was asked makes most of the difference.
"""

from fractions import Fraction
from math import comb
from typing import NamedTuple

import numpy as np


class McNemar(NamedTuple):
    """How many only the first, and only the second, has right; equation 1."""

    first_only: int
    second_only: int
    p: float


class Difference(NamedTuple):
    """The mean of first - second, and the interval that holds it."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Equation 1, of what was right, bool `n` both. Raises ValueError where they are not of the same pictures."""
    first, second = np.asarray(first), np.asarray(second)
    _check_pairs(first, second)
    if first.dtype != bool or second.dtype != bool:
        raise ValueError(f"McNemar's test takes right or wrong, bool, not {first.dtype} and {second.dtype}")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, float(min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))))


def bootstrap(
    first: np.ndarray, second: np.ndarray, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """The mean difference of numbers `n` both, with its interval. Raises ValueError."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    _check_pairs(first, second)
    if draws < 100 or not 0 < level < 1:
        raise ValueError(f"100 draws at least and a level between 0 and 1 are needed, not {draws} and {level}")
    differences, rng = first - second, np.random.default_rng(seed)
    means = [differences[rng.integers(len(differences), size=len(differences))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high))


def _check_pairs(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            "a paired test takes one value for each picture of either model, n and n; these are "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a paired test takes finite numbers, and some are not")
