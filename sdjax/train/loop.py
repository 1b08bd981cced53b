"""The loop: steps, a line of progress now and then, checkpoints by the clock, a stop at the first NaN.

A run is its folder: orbax checkpoints of the whole state, the two newest kept. Started again on the same folder it goes
on where it was, with the same batches and the same randomness, since both are functions of the step's number. Killed
at any moment it loses what it did since the last checkpoint; one that cannot be read, or whose numbers are not those
that were saved, is put aside, and the one before it taken.

On several devices each has a copy of the state and its share of every batch (`jax.jit` adds what has to be added).
"""

import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from sdjax.core.devices import everywhere, local, split
from sdjax.core.files import write
from sdjax.core.keys import key, settled
from sdjax.train.state import Params, Step, TrainState, make_optimiser

SHA256 = "sha256"  # under which a state's digest stands in what orbax keeps beside it


class Diverged(ValueError):
    """The loss or its gradient became NaN or infinite; the message names the step and the last good checkpoint."""


def fit(
    folder: str | Path,
    state: TrainState,
    step: Step,
    batch: Callable[[int], Any],
    rate: Callable[[int], float],
    *,
    steps: int,
    seed: int,
    settings: dict[str, Any],
    every: int = 50,
    save_seconds: float = 50.0,
    limit_seconds: float | None = None,
    watch: Callable[[int, TrainState], None] = lambda done, state: None,
    report: Callable[[str], None] = print,
) -> TrainState:
    """Trains until `steps` steps are done, resuming from `folder` where it holds a checkpoint.

    `batch(n)` gives step n's batch, every leaf `b ...`, `rate(n)` its learning rate. `settings` is what the run was
    asked to be: a folder begun with other settings is refused. The progress line is printed every `every` steps; the
    state is saved every `save_seconds`, however long a step takes, and at the end: after `steps` steps, or with the
    first one that ends after `limit_seconds`. After every step `watch` is called with the number of those done and the
    state, which the next step will overwrite.

    Raises:
        ValueError: the folder belongs to a run with other settings, or the batch does not divide over the devices.
        Diverged: the loss or its gradient is not finite. The last checkpoint stays.
        OSError: the disk is full, or the folder cannot be written. The last checkpoint stays.
    """
    folder = Path(folder).resolve()
    _check_settings(folder, settings)
    begun = saved = time.monotonic()
    devices = local(None)
    shared = split(devices)
    state = _resumed(folder, jax.device_put(state, everywhere(devices)), report)
    with _manager(folder) as manager:
        _check_room(folder, state)
        own, first, unread = key(seed), int(state.step), []
        for n in range(first, steps):
            with settled():
                state, metrics = step(state, _share(batch(n), shared), own, rate(n))
            watch(n + 1, state)
            unread.append(metrics)
            now = time.monotonic()
            last = n + 1 == steps or (limit_seconds is not None and now - begun > limit_seconds)
            shown, due = (n + 1) % every == 0 or last, now - saved > save_seconds or last
            if not (shown or due):
                continue
            read, unread = jax.device_get(unread), []
            _check_finite(folder, read, n + 2 - len(read), manager.latest_step())
            loss, norm = float(read[-1]["loss"]), float(read[-1]["gradient_norm"])
            if shown:
                report(_line(n + 1, steps, loss, norm, (time.monotonic() - begun) / (n + 1 - first)))
            if due:
                _check_room(folder, state)
                manager.save(n + 1, args=ocp.args.StandardSave(_plain(state)), custom_metadata={SHA256: _digest(state)})
                saved = time.monotonic()
            if last:
                break
    return state


def restore(folder: str | Path, state: TrainState) -> TrainState:
    """The newest state saved in a run's folder, shaped like `state`.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: its newest checkpoint is damaged, or of another configuration.
    """
    folder = Path(folder).resolve()
    newest = newest_step(folder)
    with _manager(folder) as manager:
        try:
            return _read(manager, newest, state)
        except Exception as error:  # orbax and tensorstore raise whatever their layers do
            what = f"{folder}: the state after {newest} steps is damaged, or of another configuration"
            raise ValueError(f"{what} ({_first_line(error)})") from error


def averaged(folder: str | Path, params: Params, optimiser: str) -> Params:
    """The averaged parameters of a run's newest state, on the host, shaped like `params`. Raises as `restore`."""
    return jax.device_get(restore(folder, TrainState.create(params, make_optimiser(optimiser))).average)


def newest_step(folder: str | Path) -> int:
    """How many steps the newest saved state of a run's folder has behind it.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
    """
    folder = Path(folder).resolve()
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        raise FileNotFoundError(f"{folder}: no checkpoint there; train first")
    return max(steps)


def settings_of(folder: str | Path) -> dict[str, Any]:
    """What a run was asked to be.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings.json is damaged.
    """
    path = Path(folder).resolve() / "settings.json"
    if not path.exists():
        raise FileNotFoundError(f"{path.parent}: no run there; train first")
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__} in place of names and values")
        return settings
    except (OSError, ValueError, RecursionError) as error:
        told = _first_line(error)
        raise ValueError(f"{path} is damaged ({told}); choose another folder, or delete this one") from error


@contextmanager
def _manager(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of a run's checkpoints; what keeps it from writing becomes an OSError of ours."""
    try:
        # Lightweight: what stands beside each state is read with it, or one that is damaged would be in the way of all.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, lightweight_initialize=True)
        with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
            yield manager
            manager.wait_until_finished()
    except Exception as error:  # an OSError, or tensorstore's ValueError around one, perhaps from orbax's own thread
        if not any(sign in str(error) for sign in ("No space left", "Disk quota exceeded")):
            raise
        raise OSError(
            f"{folder}: the disk is full; what has been saved stays, free some space and start again"
        ) from error


def _resumed(folder: Path, state: TrainState, report: Callable[[str], None]) -> TrainState:
    """The newest saved state that can be read, else `state`. What cannot be read is moved to `damaged_<step>`."""
    with _manager(folder) as manager:
        newest = manager.latest_step()
        if newest is None:
            return state
        try:
            return _read(manager, newest, state)
        except Exception as error:  # whatever orbax's layers raise; the settings are the same, so it is the files
            told = _first_line(error)
    aside = _free(folder / f"damaged_{newest}")
    report(f"{folder}: the state after {newest} steps is damaged, put aside as {aside.name} ({told})")
    (folder / "checkpoints" / str(newest)).rename(aside)
    return _resumed(folder, state, report)  # at most as often as states are kept


def _free(path: Path) -> Path:
    """The path, or where it is taken the first free one with a number after it: the same step may be damaged twice."""
    others = (path.with_name(f"{path.name}_{i}") for i in itertools.count(2))
    return path if not path.exists() else next(other for other in others if not other.exists())


def _check_room(folder: Path, state: TrainState) -> None:
    """Raises OSError where the disk has no room for another checkpoint, before one is begun."""
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(folder).free
    if free < needed:
        what = f"a checkpoint takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
        raise OSError(f"{folder}: {what}; what has been saved stays, free some space and start again")


def _read(manager: ocp.CheckpointManager, step: int, state: TrainState) -> TrainState:
    """A saved state, shaped like `state`. Raises what orbax does, and ValueError for other numbers than were saved."""
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(state))
    loaded = manager.restore(step, args=ocp.args.StandardRestore(target))
    restored = jax.tree.unflatten(jax.tree.structure(state), [loaded[str(i)] for i in range(len(loaded))])
    said = manager.metadata(step)
    if said.init_timestamp_nsecs is None:  # orbax's word for a file that it cannot read
        raise ValueError("its _CHECKPOINT_METADATA cannot be read")
    # Of a run from before there was a digest nothing is known.
    found = _digest(restored)
    if (said.custom_metadata or {}).get(SHA256, found) != found:
        raise ValueError("its numbers are not those that were saved: their sha256 is another")
    return restored


def _digest(state: TrainState) -> str:
    """sha256 of all numbers of a state, in hex. Orbax's files have none: a bit that flips there is another number."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(state)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(state: TrainState) -> dict[str, jax.Array]:
    """The state's leaves by number: independent of how optax nests its own state."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _share(batch: Any, sharding: NamedSharding) -> Any:
    number, size = sharding.num_devices, len(jax.tree.leaves(batch)[0])
    if size % number:
        raise ValueError(f"a batch of {size} cannot be shared by {number} devices; give a multiple of {number}")
    return jax.device_put(batch, sharding)


def _check_finite(folder: Path, metrics: list[dict[str, Any]], first: int, good: int | None) -> None:
    """Raises Diverged naming the first step, of those from `first` on, whose loss or gradient is not finite."""
    for n, one in enumerate(metrics, first):
        if not math.isfinite(one["loss"] + one["gradient_norm"]):
            kept = "nothing saved yet" if good is None else f"last good state: step {good}, on disk"
            what = f"loss {one['loss']}, gradient {one['gradient_norm']} at step {n}"
            raise Diverged(f"{folder}: {what}; {kept}. A lower rate or another seed may help")


def _line(done: int, steps: int, loss: float, norm: float, pace: float) -> str:
    left = (steps - done) * pace / 60
    return f"step {done}/{steps} loss {loss:.4f} gradient {norm:.2f} {pace:.3f} s/step {left:.1f} min left"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if path.exists():
        before, asked = settings_of(folder), json.loads(json.dumps(settings))
        different = sorted(k for k in before.keys() | asked.keys() if before.get(k) != asked.get(k))
        if different:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(different)}); choose another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write((json.dumps(settings, indent=2) + "\n").encode(), path, "the run")
