"""Interrupt: a run that is told to end saves first, and says by its exit status that there is more to do.

A machine that is taken away sends SIGTERM and waits for half a minute or so; a person presses Ctrl-C (SIGINT). Either
is noted, and obeyed where the state is whole: at the end of the step. A second SIGINT is the usual KeyboardInterrupt.
In several processes any of them may be told; `jax.distributed` lets all agree on the step after which they end.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

STATUS = 75  # EX_TEMPFAIL of sysexits.h: come again


class Interrupted(Exception):
    """A run ended early, as it was told to, with its state saved. A program of it exits with `status`."""

    status = STATUS


class Watch:
    """Whether a run has been told to end, and by what."""

    def __init__(self) -> None:
        self.name: str | None = None

    def told(self, step: int) -> bool:
        """Whether to end after this step. Every process asks at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return self.name is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        if number == signal.SIGINT and self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextmanager
def watched() -> Iterator[Watch]:
    """Within it SIGTERM and SIGINT are noted; outside the main thread, which hears no signals, nothing changes."""
    watch, before = Watch(), {}
    if threading.current_thread() is threading.main_thread():
        # In several processes SIGTERM is heard by jax.distributed, which has a handler of its own.
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        before = {number: signal.signal(number, watch.note) for number in numbers}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
