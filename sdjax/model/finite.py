"""What is not finite: found, and told in words.

float16 ends at 65,504. An activation beyond that is infinite, the norm after it divides infinity by infinity, and every
pixel is NaN, which would be a black picture. `networks` runs what runs once for a text or a picture once more in
float32; of the U-Net, which runs once a step, `sampling.lost` says what most likely did it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdjax.core.notice import notice

FARTHEST = 1e6  # latents have about unit variance; beyond this nothing is left of a picture, finite or not


def broken(batch: Any, most: float = np.inf) -> list[int]:
    """Which of `b ..` hold a NaN, or a number of `most` or more."""
    inside = np.abs(np.asarray(batch)) < most
    return np.flatnonzero(~inside.reshape(len(inside), -1).all(1)).tolist()


# ---------------------------------------------------------------------- in words


def tell(lost: Mapping[int, str]) -> None:
    """One warning for all the pictures that are lost."""
    reasons: dict[str, list[int]] = {}
    for i in sorted(lost):
        reasons.setdefault(lost[i], []).append(i)
    if reasons:
        each = "; ".join(f"{_numbered(pictures)}: {reason}" for reason, pictures in reasons.items())
        notice(f"lost to NaN or infinity, and black where it is NaN: {each}")


def _numbered(pictures: Sequence[int]) -> str:
    """In words: picture 0; pictures 1, 2 and 5."""
    *first, last = map(str, pictures)
    return f"pictures {', '.join(first)} and {last}" if first else f"picture {last}"


def finite(made: Any) -> bool:
    """Whether all numbers of a tree are; of what is still being traced nobody can tell."""
    leaves = jax.tree.leaves(made)
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or all(np.isfinite(leaf).all() for leaf in leaves)
