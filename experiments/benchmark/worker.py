"""One side in a process of its own, which computes when it is told to and says how long it took.

    python -m experiments.benchmark.worker SIDE JOB

A line of input is one call; its seconds are a line of output. At the end of the input comes the highest memory since
the weights were there, in bytes: the device's, or on a CPU the process's.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark import memory
from experiments.benchmark.subject import Call, Job


def serve(call: Call, device_peak: Any) -> None:
    """The worker's own half. What libraries print goes to standard error, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    memory.forget()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        call()
        print(time.perf_counter() - begun, file=answers, flush=True)
    print(device_peak() or memory.highest(), file=answers, flush=True)


class Failed(Exception):
    """A worker ended before its time; the message has the end of what it said."""


class Worker:
    """The other half: starts `command` and reads its answers.

    errors: a new file for what it says beside. limit: seconds after which it is ended; a day, where something hangs.
    """

    def __init__(self, command: Sequence[str], errors: Path, environment: Mapping[str, str], limit: float = 86400.0):
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.clock = threading.Timer(limit, self.process.kill)
        self.clock.daemon = True
        self.clock.start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.clock.cancel()
        self.process.kill()
        self.process.wait()

    def ready(self) -> float:
        """Seconds until the weights are there. Raises Failed."""
        begun = time.perf_counter()
        self._read()
        return time.perf_counter() - begun

    def time(self) -> float:
        """Seconds of one call. Raises Failed."""
        with contextlib.suppress(BrokenPipeError):  # of one that has ended, which reading tells
            print("go", file=self.process.stdin, flush=True)
        return float(self._read())

    def peak(self) -> int:
        """Bytes; the worker ends. Raises Failed."""
        self.process.stdin.close()  # type: ignore[union-attr]
        return int(self._read())

    def _read(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if line:
            return line
        said = [one for one in self.errors.read_text(errors="replace").splitlines() if one.strip()]
        raise Failed(f"a worker stopped with status {self.process.wait()}: {said[-1] if said else 'it said nothing'}")


def make(side: str, job: Job) -> tuple[Call, Any]:
    """A side's call, and what tells its device's highest memory."""
    if side == "sdjax":
        from experiments.benchmark import ours

        return ours.call(job), ours.device_peak
    from experiments.benchmark import theirs, vino

    return vino.call(job) if side == "openvino" else theirs.call(job, side), theirs.device_peak


if __name__ == "__main__":
    serve(*make(sys.argv[1], Job.read(sys.argv[2])))
