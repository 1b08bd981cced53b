"""The kernel distance: whether two sets of features come from one distribution, without a bias in how many they are.

    k(x, y) = (x . y / d + 1)^3                                                                              (1)
    MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)  (2)

(Binkowski et al. 2018, arXiv:1801.01401, section 4; with Inception's features: the KID.) Its expectation is 0 where the
distributions are the same, however few the pictures: so it may be negative. It is reported as the mean and the standard
deviation over subsets drawn without replacement, 100 of 1,000 by custom.
"""

from typing import NamedTuple

import numpy as np

from sdjax.train.evaluation.statistics import check


class KernelDistance(NamedTuple):
    """Over subsets of `size` features of each set: the mean of equation 2, and its standard deviation."""

    mean: float
    deviation: float
    size: int


def kernel_distance(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Equation 2 for features `n d` and `m d`; size: of a subset, at most half of n or m. Raises ValueError."""
    for features in (first, second):
        check(features)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and of {second.shape[1]} numbers are of different networks")
    if subsets < 1 or size < 2:
        raise ValueError(f"at least one subset of two is needed, not {subsets} of {size}")
    size = min(size, max(2, min(len(first), len(second)) // 2))  # or all subsets would be one
    rng = np.random.default_rng(seed)
    found = [mmd(_some(rng, first, size), _some(rng, second, size)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(found)), float(np.std(found)), size)


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 2 of x `n d` and y `m d`, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return _others(_kernel(x, x)) + _others(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _others(matrix: np.ndarray) -> float:
    """The mean over all but the diagonal."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def _some(rng: np.random.Generator, features: np.ndarray, size: int) -> np.ndarray:
    return features[rng.choice(len(features), size, replace=False)]
