"""A program's JSON object as fields of known types, and what a reader makes of them."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sdjax.core.numbers import is_number
from sdjax.metadata.foreign.names import Choice

MOST_BITS = 128  # of a whole number; a seed has 64
_OBJECT = re.compile(r'\s*\{\s*"')


@dataclass(frozen=True)
class Found:
    """`settings`: arguments of `generate`. `notes`: what makes the picture another one than that program's."""

    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def is_object(text: str) -> bool:
    """Whether a text begins as a JSON object does; a prompt may begin with a brace, too."""
    return _OBJECT.match(text) is not None


def as_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON of an object is expected, not a {type(found).__name__}")
    return found


@dataclass(frozen=True)
class Fields:
    """Fields by name, whatever the case of its letters, with or without spaces and underscores.

    Every reader takes second names, and gives `default` where none of them is there; without one they raise
    ValueError, as they do for what is of another type.
    """

    found: Mapping[str, Any]

    @cached_property
    def _by_name(self) -> dict[str, Any]:
        return {_plain(name): value for name, value in self.found.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return _plain(name) in self._by_name

    def get(self, *names: str) -> Any:
        """The value under the first of the names that is there, else None."""
        return next((self._by_name[_plain(name)] for name in names if name in self), None)

    def inner(self, name: str) -> "Fields":
        """The object in a field; an empty one where there is none."""
        value = self.get(name)
        return Fields(value if isinstance(value, dict) else {})

    def text(self, *names: str, default: str | None = None) -> str:
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise _wrong(names[0], value, "a text")
        return value

    def whole(self, *names: str, default: int | None = None) -> int:
        value = self.number(*names, default=default)
        if isinstance(value, float):
            raise _wrong(names[0], value, "a whole number")
        return value

    def number(self, *names: str, default: float | None = None) -> int | float:
        """Numbers are often written as text."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        return as_number(value, names[0])

    def truth(self, *names: str) -> bool:
        """Whether a switch is on."""
        value = self.get(*names)
        return str(value).strip().lower() not in ("none", "false", "0", "0.0", "", "[]", "{}", "off", "disabled")

    def on(self, names: Iterable[str]) -> list[str]:
        """Those of the names whose switches are on."""
        return [name for name in names if name in self and self.truth(name)]


def as_number(value: Any, name: str) -> int | float:
    """A finite number, whole where it is: 7.0 is 7. Raises ValueError."""
    if isinstance(value, str) and len(value) <= 40:
        with contextlib.suppress(ValueError):
            value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    if not is_number(value):
        raise _wrong(name, value, "a number")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _wrong(name, value, "a finite number")
        value = int(value) if value.is_integer() else value
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"{name} is a number of {value.bit_length()} bits")
    return value


def sampler(choice: Choice | None, name: str) -> dict[str, Any]:
    """What a program's sampler is here. Raises ValueError where there is none like it."""
    if choice is None:
        raise ValueError(f"its sampler {name[:60]!r} has no counterpart here")
    return choice.settings()


def not_done(names: Iterable[str], what: str = "is not done here") -> list[str]:
    """A note that names parts of a program's work which are left out; none where there are none."""
    listed = list(dict.fromkeys(name[:60] for name in names))
    shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
    return [f"{shown} {what}"] if listed else []


def _plain(name: str) -> str:
    return str(name).casefold().replace(" ", "").replace("_", "")


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    if value is None:
        return ValueError(f"{name} is missing")
    shown = repr(value) if isinstance(value, str | float | bool) else type(value).__name__
    return ValueError(f"{name} must be {wanted}, not {shown[:60]}")
