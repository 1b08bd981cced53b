"""What counts as a number: Python's bools do not, though they are ints to it."""

from types import UnionType
from typing import Any


def is_number(value: Any, kinds: type | UnionType = int | float) -> bool:
    """Whether `value` is of one of these kinds of number, and no bool."""
    return isinstance(value, kinds) and not isinstance(value, bool)
