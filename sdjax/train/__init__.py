"""Training: the state, one step of it, checkpoints, and the loop that puts them together.

`sdjax.train.loop` and `sdjax.train.state` are imported when they are first asked for: optax and orbax come with them.
"""

import importlib
from typing import Any

LATER = ("loop", "low_rank", "state")


def __dir__() -> list[str]:
    """The modules of this folder."""
    return list(LATER)


def __getattr__(name: str) -> Any:
    """A module of `LATER`. Raises AttributeError for another name."""
    if name in LATER:
        return importlib.import_module(f"sdjax.train.{name}")
    raise AttributeError(f"sdjax.train has no {name}; it has {', '.join(LATER)}")
