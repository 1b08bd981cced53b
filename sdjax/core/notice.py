"""A warning at the line that is the caller's own, whatever lies between that line and the file that warns.

This file imports nothing of sdjax, so that every file may import it.
"""

import inspect
import os
import warnings

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def notice(message: str) -> None:
    """Warns as if from the nearest line outside of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and os.path.abspath(frame.f_code.co_filename).startswith(HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
