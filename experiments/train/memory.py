"""What --dry_run says before anything is learnt: memory, time, what the data looks like."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from experiments.load_cost import peak
from sdjax.core.keys import key, settled
from sdjax.train.mesh import share
from sdjax.train.state import TrainState
from sdjax.train.step import Step

SHEET = "data.png"


def tell(step: Step, state: TrainState, batch: Any, values: Any, report: Callable[[str], None]) -> None:
    """Compiles the step, takes two, and tells what they took; the state is spent."""
    shared, own = share(batch, step.mesh), key(values.seed)
    with settled():
        compiled = step.run.lower(state, shared, own, jax.numpy.float32(0), step.frozen).compile()
        found = compiled.memory_analysis()
        learns, frozen = (_bytes(one) for one in (state.params, step.frozen))
        report(f"what learns: {_mb(learns)}; with optimiser and averages {_mb(_bytes(state))}; the rest {_mb(frozen)}")
        if found is not None:
            total = found.temp_size_in_bytes + found.argument_size_in_bytes
            report(f"a step holds {_mb(found.temp_size_in_bytes)} beside them, {_mb(total)} in all, by XLA's count")
        times = []
        for _ in range(2):
            begun = time.monotonic()
            state, told = step(state, shared, own, 0.0)
            jax.block_until_ready(state)
            times.append(time.monotonic() - begun)
    if sys.platform == "linux":
        report(f"this process, with Python, compiling and what was read, has held {_mb(peak())} at most")
    left = times[-1] * values.steps / 60
    report(f"loss {float(told['loss']):.4f}; {times[-1]:.3f} s a step, {left:.1f} min for {values.steps} steps")


def show(sheet: Image.Image | None, out: Path, report: Callable[[str], None]) -> None:
    """Writes the sheet of what the model will see."""
    if sheet is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / SHEET)
    report(f"what it sees: {out / SHEET}")


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
