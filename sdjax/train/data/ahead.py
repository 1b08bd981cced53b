"""Ahead: the batches of the next steps are made while a step is computed. What they are, it does not change."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """`batch` as a function of the step, which has those of the next `depth` steps in the making.

    Each is made by a thread of its own: pictures are decoded and scaled outside of Python's lock. It is a context, at
    the end of which nothing is made any more.
    """

    def __init__(self, batch: Callable[[int], Any], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"at least one batch is made ahead, not {depth}")
        self._batch, self._depth = batch, depth
        self._made: dict[int, Future[Any]] = {}
        self._pool = ThreadPoolExecutor(depth, thread_name_prefix="batches")

    def __call__(self, step: int) -> Any:
        """The batch of a step; raises what making it raises."""
        wanted = range(step, step + 1 + self._depth)
        for other in self._made.keys() - set(wanted):
            self._made.pop(other).cancel()
        for one in wanted:
            if one not in self._made:
                self._made[one] = self._pool.submit(self._batch, one)
        return self._made.pop(step).result()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
