"""Training: teach a model, by any method, on one device or many.

    objective     what is made smaller: loss, metrics = objective(params, batch, key)        `losses`
    method        what of a model learns, and how it is kept                                 `methods`
    batch(step)   what it learns from, a function of the step                                `data`
    step, fit     one compiled program, and the loop that runs it, saves it and goes on      `step`, `loop`

Read `objective` and `methods.method` first, the two plugs; `architecture`, what a model is here, and `conditioning`,
what the U-Net is told. Then `optimisers`, `rates` and `averages`; `step`, which puts them into one program, over the
devices of a `mesh`; `state`, `checkpoint`, `run_folder`, `metrics` and `interrupt`, of which `loop` is made. How good
it has become, `validation` and `evaluation` say.

Modules are imported when they are first asked for: optax and orbax come with some of them.
"""

import importlib
from typing import Any

LATER = (
    "architecture",
    "averages",
    "checkpoint",
    "conditioning",
    "data",
    "evaluation",
    "loop",
    "losses",
    "mesh",
    "methods",
    "metrics",
    "objective",
    "optimisers",
    "rates",
    "state",
    "step",
    "validation",
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
