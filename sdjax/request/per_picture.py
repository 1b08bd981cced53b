"""What may be one for all pictures of a call, or one for each: read once, however many it stands for."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sdjax.request import checks


def each(value: Any, count: int, name: str) -> list[Any]:
    """One picture for all of `count`, or a list, or an array `b H W c`, with one each. Raises ValueError."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim == 4 else [value]
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not listed:
        raise ValueError(f"{name} is an empty list: give one picture, or one for each of the {count}")
    return checks.spread(listed, count, name)


def read_each(value: Any, count: int, name: str, door: Callable[..., Any]) -> list[Any]:
    """`each`, read; a picture that stands for several is read once. Raises ValueError, FileNotFoundError."""
    return once(each(value, count, name), partial(door, name=name))


def once(pictures: Sequence[Any], see: Callable[[Any], Any]) -> list[Any]:
    """`see` of each picture; one that stands for several is looked at once."""
    seen: dict[int, Any] = {}
    for one in pictures:
        if id(one) not in seen:
            seen[id(one)] = see(one)
    return [seen[id(one)] for one in pictures]
