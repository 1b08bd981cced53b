"""How values that hold arrays are shown: `float32[2, 77, 768]`, and never the numbers.

A notebook prints the last value of a cell, and a checkpoint printed whole is a million characters. A dataclass that
holds arrays takes `__repr__ = short.fields`. This file imports nothing of sdjax, so that every file may import it.
"""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import Any

LONGEST = 80  # characters of a value that is no array
MOST_BITS = 256  # of a whole number that is written out; Python itself writes none of over 4,300 digits


def fields(self: Any) -> str:
    """A dataclass's or named tuple's `__repr__`: its fields, each `short`, but for hidden ones, None and `()`."""
    names = [one.name for one in fields_of(self) if one.repr] if is_dataclass(self) else self._fields
    shown = [(name, value) for name in names if (value := getattr(self, name)) is not None and not _empty(value)]
    return f"{type(self).__name__}({', '.join(f'{name}={short(value)}' for name, value in shown)})"


def short(value: Any) -> str:
    """One value in a few words: an array by its type and shape, a mapping or a list of many by their number."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}" if value.shape or not _plain(value) else str(value)
    if isinstance(value, Mapping):
        return f"{{{len(value)} entries}}" if value else "{}"
    if isinstance(value, list | tuple) and (len(value) > 4 or any(hasattr(one, "shape") for one in value)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    return cut(repr(value))


def cut(text: str, most: int = LONGEST) -> str:
    """A text of at most so many characters, its end left out."""
    return text if len(text) <= most else text[: most - 2] + ".."


def _empty(value: Any) -> bool:
    return isinstance(value, tuple) and not value


def _plain(value: Any) -> bool:
    """Whether an array without axes is a number that can be told: no key, and not traced."""
    return type(value).__module__ == "numpy"
