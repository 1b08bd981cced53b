"""What a message says of names: those from strangers' files made fit to be shown, and the nearest that are known."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from itertools import islice


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file, the tensor and the remedy."""


def shown(text: str, most: int = 200) -> str:
    """A name out of somebody's file for a message: not too long, and nothing that a terminal would obey."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


def listing(items: Sequence[str], most: int = 8) -> str:
    """The first few of `items`, one a line, then how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return "".join(f"\n    {item}" for item in [*map(shown, items[:most]), *more])


def unknown(said: str, name: object, known: Collection[str], told: str = "") -> str:
    """A message of a name that there is not: '`said`; nearest: ...; known: ...', where `told` may stand for the last.

    said: what is wrong, as "schedule 'karas' is unknown". known: the names that there are, one at least.
    """
    (near,) = closest(str(name), known, cutoff=0.0)
    return f"{said}; nearest: {near!r}; {told or 'known: ' + ', '.join(known)}"


def closest(name: str, known: Collection[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The names most like `name`, the most alike first; `cutoff`: how alike, from 0 (in nothing) to 1 (the same)."""
    return difflib.get_close_matches(name, known, n=most, cutoff=cutoff)


def nearest(name: str, known: Iterable[str]) -> str:
    """' (nearest: ...)' for an error message, or nothing where no name is near."""
    # As long a name, and not too many of them: a file may have a hundred thousand, each compared letter by letter.
    alike = (other for other in known if abs(len(other) - len(name)) <= 0.5 * len(name) <= 200)
    near = closest(name, list(islice(alike, 2000)), most=3, cutoff=0.7)
    return f" (nearest: {', '.join(map(shown, near))})" if near else ""
