"""Order: which pictures the batch of step n holds, as a function of (seed, n) alone.

The pictures of a bucket k are an endless stream: all n_k of them in a random order, then all of them in another, and so
on. Its batches are cut from the stream one after the other, b at a time, across the seams. So every batch is full, no
picture is left out at the end of a pass, and none comes oftener than another. In which turn t (the t-th pass of its
bucket) a picture comes tells its crop and caption.

After e epochs bucket k has given floor(e n_k / b) batches. The steps before epoch e are therefore

    C(e) = sum_k floor(e n_k / b),                                                                          (1)

and epoch e is the steps C(e) .. C(e + 1) - 1, in which the batches of all buckets that are due come in a random order.
Equation 1 inverted tells the epoch of any step, so that nothing has to be kept to go on from it, and every host knows
every step's bucket without asking another. A bucket of fewer than b pictures comes when it has filled a batch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

STREAM, BATCHES = 0, 1  # what a random order is of


class Places(NamedTuple):
    """What a batch is made of: a bucket's pictures by their numbers, int64 `b`, each in its turn, int64 `b`."""

    bucket: int
    numbers: np.ndarray
    turns: np.ndarray


@dataclass(frozen=True, eq=False)
class Order:
    """See above. buckets: the numbers of the pictures in each, none empty; a picture may be there several times."""

    buckets: tuple[np.ndarray, ...]
    size: int
    seed: int
    _counts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1 or not self.buckets or not all(len(own) for own in self.buckets):
            raise ValueError("an order needs batches of at least one picture, and a picture in every bucket")
        object.__setattr__(self, "_counts", np.array([len(own) for own in self.buckets], np.int64))

    def begins(self, epoch: int) -> int:
        """Equation 1: the first step of an epoch."""
        return int((epoch * self._counts // self.size).sum())

    def epoch(self, step: int) -> int:
        """The epoch of a step."""
        about = step * self.size // int(self._counts.sum())  # C(e) is at most e sum_k n_k / b: no earlier one is it
        last = about + len(self.buckets) * self.size + 1  # and less than the number of buckets below that
        return about + bisect_right(range(about, last + 1), step, key=self.begins) - 1

    def places(self, step: int) -> Places:
        """What the batch of a step holds."""
        if step < 0:
            raise ValueError(f"steps are counted from 0; there is no step {step}")
        epoch = self.epoch(step)
        bucket, batch = self._batches(epoch)[step - self.begins(epoch)]
        numbers, turns = self.stream(bucket, batch * self.size, self.size)
        return Places(bucket, numbers, turns)

    def stream(self, bucket: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, turns) of a part of a bucket's stream."""
        turns, at = np.divmod(np.arange(start, start + count), len(self.buckets[bucket]))
        numbers = [self._turn(bucket, int(turn))[place] for turn, place in zip(turns, at, strict=True)]
        return np.array(numbers, np.int64), turns

    def _batches(self, epoch: int) -> Sequence[tuple[int, int]]:
        return _shuffled_batches(tuple(self._counts.tolist()), self.size, self.seed, epoch)

    def _turn(self, bucket: int, turn: int) -> np.ndarray:
        return self.buckets[bucket][_permutation(self.seed, bucket, turn, len(self.buckets[bucket]))]


@lru_cache(maxsize=2)
def _shuffled_batches(counts: tuple[int, ...], size: int, seed: int, epoch: int) -> Sequence[tuple[int, int]]:
    """(bucket, number of its batch) for each step of an epoch."""
    due = [(k, j) for k, count in enumerate(counts) for j in range(epoch * count // size, (epoch + 1) * count // size)]
    return [due[i] for i in np.random.default_rng((seed, BATCHES, epoch)).permutation(len(due))]


@lru_cache(maxsize=128)
def _permutation(seed: int, bucket: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, STREAM, bucket, turn)).permutation(count)
