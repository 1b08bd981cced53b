"""Processes: a run in several of them, on one machine or many, that see the same folders.

    --distributed=auto                        a TPU pod, Slurm, MPI or whatever `jax.distributed.initialize` knows
    --distributed=10.0.0.1:1234,4,0           the first of four, whose address it is; 1, 2, 3 in the others

All run the same command but for that flag. The first one alone speaks, writes files and paints; what is encoded
beforehand it encodes, and the others read.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")


def join(text: str | None) -> None:
    """Takes part in what --distributed says, before JAX looks at any device. Raises ValueError."""
    if not text:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if text == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = text.split(",")
    if len(numbers) != 2 or ":" not in address or not all(one.isdigit() for one in numbers):
        raise ValueError(f"--distributed={text}: it is auto, or address:port,processes,process")
    count, index = map(int, numbers)
    if index >= count:
        raise ValueError(f"--distributed={text}: of {count} processes the last is {count - 1}")
    jax.distributed.initialize(address, count, index)


def first() -> bool:
    """Whether this process is the one that speaks, writes and paints."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """(this process, how many there are): whose rows of a batch it makes."""
    return jax.process_index(), jax.process_count()


def one_first(make: Callable[[], T]) -> T:
    """What every process makes, the first one before the others, so that they find its files."""
    if jax.process_count() == 1:
        return make()
    made = make() if first() else None
    multihost_utils.sync_global_devices("the first process is ready")
    return make() if made is None else made
