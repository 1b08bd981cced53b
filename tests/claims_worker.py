"""A process of test_claims.py: makes numbered files by claims, without JAX.

Arguments: folder, how many, at once, options. Options, JSON: lease in seconds; machine, a name for where it runs; skew,
seconds by which its clock is wrong; work, seconds a batch takes at most; rank.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

from experiments import _claims, _files, generate_many


class Numbers:
    """As a Record, of files that hold their own number 1,000 times."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.lines = folder, [{}] * count

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.png"

    def missing(self, numbers=None) -> list[int]:
        there = set(os.listdir(self.folder))
        every = range(len(self.lines)) if numbers is None else numbers
        return [number for number in every if self.path(number).name not in there]


def main(folder: str, count: str, size: str, given: str) -> None:
    options, record = json.loads(given), Numbers(Path(folder), int(count))
    if machine := options.get("machine"):
        _claims._machine = lambda: machine
    skew, touch = options.get("skew", 0.0), os.utime
    os.utime = lambda file: touch(file, (time.time() + skew,) * 2)  # what a host whose clock is wrong would write
    start = _claims.first(options.get("rank", 0), len(record.lines))
    with _claims.Claims(record.folder, "worker", options.get("lease", 60.0)) as claims:
        with claims.lock():
            claims.join()
        for batch in generate_many.batches(record, claims, int(size), start):
            print("made", *batch, flush=True)
            time.sleep(random.uniform(0, options.get("work", 0.0)))
            for number in batch:
                new = _files.publish(f"{number}\n".encode() * 1000, record.path(number))
                print("new" if new else "dropped", number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
