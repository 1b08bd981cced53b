"""Warnings that point at the user's own line, however deep in this package they are found."""

import inspect
import warnings

PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """`warnings.warn` at the innermost line that is not of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
