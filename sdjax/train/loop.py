"""The loop: steps, a line of progress now and then, checkpoints by the clock, a stop at the first NaN.

A run is its folder: orbax checkpoints of the whole state, newest kept. Started again on the same folder it goes on
where it was, with the same batches and the same randomness, since both are functions of the step's number.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sdjax.train.state import TrainState


class Diverged(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message names the step and the last good checkpoint."""


def fit(
    folder: str | Path,
    state: TrainState,
    step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
    batch: Callable[[int], Any],
    *,
    steps: int,
    seed: int,
    settings: dict[str, Any],
    every: int = 50,
    save_seconds: float = 60.0,
    report: Callable[[str], None] = print,
) -> TrainState:
    """Trains until `steps` steps are done, resuming from `folder` where it holds a checkpoint.

    `batch(n)` gives step n's batch. `settings` is what the run was asked to be: a folder begun with other settings
    is refused. The progress line is printed every `every` steps; the state is saved every `save_seconds`, however long
    a step takes, and at the end.

    Raises:
        ValueError: the folder belongs to a run with other settings.
        Diverged: the loss or its gradient is not finite. The last checkpoint stays.
    """
    folder = Path(folder).resolve()
    _check_settings(folder, settings)
    with ocp.CheckpointManager(folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        state = _restore(manager, state)
        key, begun, first = jax.random.key(seed), time.monotonic(), int(state.step)
        saved = begun
        for n in range(first, steps):
            state, metrics = step(state, batch(n), key)
            shown, due = (n + 1) % every == 0, time.monotonic() - saved > save_seconds or n + 1 == steps
            if not (shown or due):
                continue
            loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
            if not math.isfinite(loss + norm):
                good = manager.latest_step()
                what = f"loss {loss}, gradient {norm}"
                raise Diverged(f"{folder}: {what} at step {n + 1}; last good state: step {good}, on disk")
            if shown or n + 1 == steps:
                pace = (time.monotonic() - begun) / (n + 1 - first)
                report(_line(n + 1, steps, loss, norm, pace))
            if due:
                manager.save(n + 1, args=ocp.args.StandardSave(_plain(state)))
                saved = time.monotonic()
        manager.wait_until_finished()
    return state


def _line(done: int, steps: int, loss: float, norm: float, pace: float) -> str:
    left = (steps - done) * pace / 60
    return f"step {done}/{steps} loss {loss:.4f} gradient {norm:.2f} {pace:.2f} s/step {left:.1f} min left"


def restore(folder: str | Path, state: TrainState) -> TrainState:
    """The newest state saved in a run's folder, shaped like `state`.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
    """
    folder = Path(folder).resolve()
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        if manager.latest_step() is None:
            raise FileNotFoundError(f"{folder}: no checkpoint there; train first")
        return _restore(manager, state)


def _restore(manager: ocp.CheckpointManager, state: TrainState) -> TrainState:
    newest = manager.latest_step()
    if newest is None:
        return state
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(state))
    loaded = manager.restore(newest, args=ocp.args.StandardRestore(target))
    return jax.tree.unflatten(jax.tree.structure(state), [loaded[str(i)] for i in range(len(loaded))])


def _plain(state: TrainState) -> dict[str, jax.Array]:
    """The state's leaves by number: independent of how optax nests its own state."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    if before != json.loads(json.dumps(settings)):
        different = sorted(k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k))
        raise ValueError(f"{folder} holds a run with other settings ({', '.join(different)}); choose another folder")
