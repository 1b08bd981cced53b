"""Precision and recall: are the pictures like real ones, and are all kinds of real ones among them.

    B_k(S) = the union of balls around each feature of S, as large as the distance to its k-th neighbour in S      (1)
    precision = part of the generated within B_k(real),     recall = part of the real within B_k(generated)     (2)

(Kynkaanniemi et al. 2019, arXiv:1904.06991, section 2; k = 3.) One model may trade the first for the second, as a large
guidance scale does, and the Frechet distance does not say which. Take as many of either.
"""

from typing import NamedTuple

import numpy as np

from sdjax.train.evaluation.statistics import check

ROWS = 1024  # of distances at once


class Precision(NamedTuple):
    """Equation 2, from 0 to 1."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> Precision:
    """Of features `n d` and `m d`. Raises ValueError for k or fewer of either."""
    for features in (real, generated):
        check(features)
        if len(features) <= k:
            raise ValueError(
                f"the {k}-th neighbour needs more than {k} pictures of each kind, and one has {len(features)}"
            )
    return Precision(_within(generated, real, k), _within(real, generated, k))


def _within(points: np.ndarray, balls: np.ndarray, k: int) -> float:
    """The part of the points that lie in a ball of equation 1."""
    rows = (_squares(balls[i : i + ROWS], balls) for i in range(0, len(balls), ROWS))
    radii = np.concatenate([np.partition(one, k, axis=1)[:, k] for one in rows])  # the 0-th neighbour is itself
    parts = (_squares(points[i : i + ROWS], balls) <= radii for i in range(0, len(points), ROWS))
    return float(np.concatenate([one.any(1) for one in parts]).mean())


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances `n m`, float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0)
