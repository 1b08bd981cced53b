"""What is declared of an argument, and the class that topics of arguments are made from.

    steps: int = argument(20, int, span=(1, 10_000), each="picture", flag=Flag("Steps of the sampler.", least=1))

A topic is a frozen dataclass of such fields. Everything that goes over all arguments goes over these declarations: the
settings of a picture, the check of settings that a file holds (`stored_settings`), the flags of the command line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from sdjax.core import short
from sdjax.request import checks

NONE = type(None)
ALWAYS, UNUSUAL, GIVEN, NEVER = "always", "where it is not the default", "as given", "never"


@dataclass(frozen=True)
class Flag:
    """A flag of the command line that is this argument.

    Attributes:
      help: what it does, in a sentence. least, most: what the flag itself refuses; the rest is `generate`'s to check.
      kind: of value; None is the first type that a file may hold.
    """

    help: str
    least: float | None = None
    most: float | None = None
    kind: type | None = None


@dataclass(frozen=True)
class Declaration:
    """All that is declared of an argument beside its name and default.

    Attributes:
      types: what a file may hold of it for one picture; a whole number is no float, and () is in no file. A list is a
        pair of pixels, as (height, width).
      span: least and most of a number in a file, both allowed: what `generate` allows at most, and less where that
        knows no end.
      told: when settings name it. ALWAYS; UNUSUAL: where it is not the default; GIVEN: where it is not None, and then
        by the word "given" alone, since a file holds no picture; NEVER.
      each: whether it may be a list with one entry for each "picture" or "prompt"; "" is one for the call.
      raw: whether arrays stay arrays; other arguments are Python's own numbers, texts and lists.
      flag: of the command line, or None.
    """

    types: tuple[type, ...] = ()
    span: tuple[float, float] | None = None
    told: str = ALWAYS
    each: str = ""
    raw: bool = False
    flag: Flag | None = None


def argument(
    default: Any,
    *types: type,
    span: tuple[float, float] | None = None,
    told: str = ALWAYS,
    each: str = "",
    raw: bool = False,
    flag: Flag | None = None,
) -> Any:
    """A field of a topic; see `Declaration`."""
    declared = Declaration(types, span, told, each, raw, flag)
    return field(default=default, metadata={"declaration": declared})


@dataclass(frozen=True, eq=False)
class Topic:
    """Arguments that belong together, as `generate` was given them or as they were checked."""

    __repr__ = short.fields

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The topic's own of a call's arguments. Raises ValueError for a jax key where none belongs."""
        own = {name: given[name] for name in cls.declarations() if name in given}
        return cls(**{name: cls.plain(name, value) for name, value in own.items()})

    @classmethod
    def plain(cls, name: str, value: Any) -> Any:
        """An argument's value; of an array of numbers or texts, Python's own."""
        return value if cls.declarations()[name].raw else checks.plain(value, name)

    @classmethod
    def declarations(cls) -> dict[str, Declaration]:
        """What is declared of each argument, by name."""
        return {one.name: one.metadata["declaration"] for one in fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Each argument's default, by name."""
        return {one.name: one.default for one in fields(cls)}

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each argument's name and value."""
        return ((name, getattr(self, name)) for name in self.declarations())

    def settings(self) -> dict[str, Any]:
        """Of checked arguments, those that make the same pictures again, as `generate` takes them."""
        usual, declared = self.defaults(), self.declarations()
        told = {}
        for name, value in self.items():
            when = declared[name].told
            if when == GIVEN and value is not None:
                told[name] = "given"
            elif when == ALWAYS or (when == UNUSUAL and value != usual[name]):
                told[name] = value
        return told
