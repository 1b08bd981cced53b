"""What a message says of names: those from strangers' files made fit to be shown, and the nearest that are known."""

import difflib
from collections.abc import Iterable, Sequence
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


def nearest(name: str, known: Iterable[str]) -> str:
    """' (nearest: ...)' for an error message, or nothing where no name is near."""
    # As long a name, and not too many of them: a file may have a hundred thousand, each compared letter by letter.
    alike = (other for other in known if abs(len(other) - len(name)) <= 0.5 * len(name) <= 200)
    near = difflib.get_close_matches(name, list(islice(alike, 2000)), n=3, cutoff=0.7)
    return f" (nearest: {', '.join(map(shown, near))})" if near else ""
