"""Training: what is made smaller, what of a model learns, one step of it, checkpoints, and the loop around them.

Read `objective` and `methods.method` first, the two plugs. Then `optimisers`, `rates` and `averages`; `step`, which
puts them into one program, over the devices of a `mesh`; `checkpoint`; and `loop`, which runs it.

Modules are imported when they are first asked for: optax and orbax come with some of them.
"""

import importlib
from typing import Any

LATER = (
    "averages",
    "checkpoint",
    "loop",
    "low_rank",
    "mesh",
    "metrics",
    "optimisers",
    "rates",
    "state",
    "step",
    "watches",
)


def __dir__() -> list[str]:
    """The modules of this folder."""
    return list(LATER)


def __getattr__(name: str) -> Any:
    """A module of `LATER`. Raises AttributeError for another name."""
    if name in LATER:
        return importlib.import_module(f"sdjax.train.{name}")
    raise AttributeError(f"sdjax.train has no {name}; it has {', '.join(LATER)}")
