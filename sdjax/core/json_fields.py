"""A JSON object that somebody else wrote, read key by key.

Every value is of the kind and in the range that the code behind it can use, or is refused by its key: a width of 10^9
or a layer count of 10^6 would otherwise keep the tracer busy for hours, a text in place of a number end as a TypeError
deep inside a library. Null counts as absent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.core.numbers import is_number
from sdjax.core.short import short

LARGEST = 1 << 20  # of widths and counts; the largest in use are vocabularies, of 49408


class ConfigError(ValueError):
    """A config.json asks for something that is missing or that this package does not have."""


@dataclass(frozen=True)
class Fields:
    """The values of one config by key, and `where` it is, for messages. Every method raises ConfigError."""

    values: Mapping[str, Any]
    where: str

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        """A whole number from `least` to `most`."""
        return self._checked(key, self._get(key, default), *_whole(least, most))

    def whole_or_none(self, key: str) -> int | None:
        """A whole number, or None where the key is absent."""
        return None if self.values.get(key) is None else self.whole(key)

    def wholes(self, key: str, most_entries: int) -> tuple[int, ...]:
        """A list of one or more whole numbers, all of them at least 1."""
        found, (fits, what) = self.list(key), _whole(1, LARGEST)
        if not 1 <= len(found) <= most_entries:
            raise self.error(key, f"1 to {most_entries} entries", found)
        return tuple(self._checked(key, one, fits, what) for one in found)

    def per_level(self, key: str, value: Any, levels: int, least: int = 1, most: int = LARGEST) -> tuple[int, ...]:
        """A whole number, or a list with one for each level."""
        found = value if isinstance(value, list | tuple) else [value] * levels
        if len(found) != levels:
            raise ConfigError(f"{self.where}: {key} has {len(found)} entries for {levels} levels")
        return tuple(self._checked(key, one, *_whole(least, most)) for one in found)

    def number(self, key: str, default: float, least: float = -math.inf, most: float = math.inf) -> float:
        """A number from `least` to `most`, both of which may be infinite."""
        value = self._get(key, default)
        fits = is_number(value) and least <= value <= most
        if not fits or (least > -math.inf and not math.isfinite(value)):
            span = f" from {least:g} to {most:g}" if least > -math.inf else ""
            raise self.error(key, f"a number{span}", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self._checked(key, self._get(key, default), lambda value: isinstance(value, bool), "true or false")

    def text(self, key: str, default: str) -> str:
        """A short text."""
        value = self._get(key, default)
        return self._checked(key, value, lambda one: isinstance(one, str) and len(one) <= 80, "a short text")

    def list(self, key: str, of: type | tuple[type, ...] = object) -> Sequence[Any]:
        """A list of such values, empty where the key is absent."""
        found = self._checked(key, self._get(key, ()), lambda value: isinstance(value, list | tuple), "a list")
        if not all(isinstance(one, of) for one in found):
            raise self.error(key, "a list of " + ("texts" if of is str else "numbers"), found)
        return found

    def one_of(self, key: str, supported: tuple[Any, ...], default: Any = None) -> Any:
        """One of a few values."""
        value = self.values.get(key, default)
        if value not in supported:
            known = ", ".join(repr(one) for one in supported) or "none (leave it out)"
            raise ConfigError(f"{self.where}: {key} = {short(value)} is not supported; supported: {known}")
        return value

    def require(self, *keys: str) -> None:
        """All of the keys are there."""
        missing = [key for key in keys if self.values.get(key) is None]
        if missing:
            raise ConfigError(f"{self.where}: {', '.join(missing)} missing; is this the right file?")

    def multiples(self, key: str, values: Sequence[int], of: str, divisors: Sequence[int]) -> None:
        """Each value is a multiple of its divisor, which stands under the key `of`."""
        for value, divisor in zip(values, divisors, strict=True):
            if value % divisor:
                raise ConfigError(f"{self.where}: {key} {value} is no multiple of {of} {divisor}")

    def error(self, key: str, what: str, value: Any) -> ConfigError:
        """The key must be `what`, and is `value`."""
        return ConfigError(f"{self.where}: {key} must be {what}, not {short(value)}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _checked(self, key: str, value: Any, fits: Callable[[Any], bool], what: str) -> Any:
        if not fits(value):
            raise self.error(key, what, value)
        return value


def _whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    span = f"from {least} to {most}" if most < LARGEST else f"of at least {least} (and at most {most})"
    return lambda value: type(value) is int and least <= value <= most, f"a whole number {span}"
