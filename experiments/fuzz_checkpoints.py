"""Damaged checkpoints by the thousand: every one must load right or be refused in words.

    python -m experiments.fuzz_checkpoints --cases=12000 --out=docs/fuzz.md       # about 15 minutes on 2 cores

Small checkpoints (a folder, one in shards, three single files, an autoencoder) are mutated, one file each, in the ways
of `fuzz_mutations`, and opened as a user would. Expected of each: ConfigError, CheckpointError or a ValueError of our
own whose one message names the file or the key; or parameters equal, bit for bit, to what the bytes say when they are
read by hand, and a plan from its scheduler. Anything else is a fault: another exception, one from inside a library,
a message that names nothing, other numbers, 10 s of work, memory beyond what the files take, a dead process.

Case i of a seed is the same on every machine; `--only=i` runs it alone and shows the traceback.
"""

import contextlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from experiments.fuzz_door import Door, Result, make_bases, run_case, serve

WALL = 60  # seconds of waiting after which a worker is ended


def run_share(cases: Iterator[int], opens: Any, bases: Path, seed: int) -> list[Result]:
    """Runs cases in a worker process; one that dies or waits too long is ended and another begun."""
    context, results = multiprocessing.get_context("spawn"), []
    pipe = worker = None
    for case in cases:
        if pipe is None:
            pipe, theirs = context.Pipe()
            worker = context.Process(target=serve, args=(theirs, opens, bases, seed), daemon=True)
            worker.start()
            theirs.close()
            pipe.recv()
        pipe.send(case)
        try:
            answered = answers(pipe, worker)
            results.append(pipe.recv() if answered else Result(case, "", "", "HANGS", f"no answer in {WALL} s"))
        except EOFError:
            results.append(Result(case, "", "", "CRASH", "the process died"))
        if results[-1].outcome in ("HANGS", "CRASH"):
            worker.kill()  # type: ignore[union-attr]
            pipe = None
            with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as folder:
                base, kind, _ = opens.make_case(seed, case, bases, Path(folder))
                results[-1] = Result(case, base, kind, results[-1].outcome, results[-1].message)
        if case % 500 == 0:
            print(f"case {case}", file=sys.stderr, flush=True)
    if pipe is not None:
        pipe.send(None)
    return results


def answers(pipe: Any, worker: Any) -> bool:
    """Whether a worker answers in time. Not counted is when it would run and others have the processors.

    By the second, so that a machine that was put to sleep is not taken for a hang either.
    """
    left, (_, spent) = float(WALL), state(worker.pid)
    while left > 0:
        if pipe.poll(1.0):
            return True
        runs, now = state(worker.pid)
        left -= max(now - spent, 0.001) if runs else 1.0
        spent = now
    return False


def state(process: int) -> tuple[bool, float]:
    """Whether a process could run, and the seconds that it has run."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, and its pipe says so
        return False, 0.0
    return words[0] == "R", (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def table(results: list[Result]) -> str:
    """Kinds of mutation by outcome, as Markdown."""
    outcomes = sorted({result.outcome for result in results}, key=lambda name: (name.isupper(), name))
    counts = Counter((result.kind, result.outcome) for result in results)
    lines = [f"| mutation of | {' | '.join(outcomes)} |", "|---" * (1 + len(outcomes)) + "|"]
    for kind in [*dict.fromkeys(sorted(result.kind for result in results))]:
        lines.append(f"| {kind} | {' | '.join(str(counts[kind, outcome]) for outcome in outcomes)} |")
    totals = Counter(result.outcome for result in results)
    lines.append(f"| all {len(results):,} | {' | '.join(str(totals[outcome]) for outcome in outcomes)} |")
    return "\n".join(lines)


def distinct(results: list[Result]) -> list[tuple[int, Result]]:
    """One result of each message, names and numbers aside, with how many there are; faults first."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        key = re.sub(r"'[^']*'|[-\d.,]+|/\S+", "_", result.message[:150])
        groups.setdefault((result.outcome, key), []).append(result)
    ordered = sorted(groups.items(), key=lambda item: (not item[0][0].isupper(), *item[0]))
    return [(len(group), group[0]) for _, group in ordered]


def report(results: list[Result], what: str, command: str, seconds: float) -> str:
    """The page that --out writes; what: was damaged."""
    slowest, largest = max(r.seconds for r in results), max(r.mebibytes for r in results)
    messages = len({key.message for _, key in distinct(results) if key.outcome == "refused"})
    return (
        f"# Damaged {what}\n\n    {command}\n\n"
        "Each is loaded right, bit for bit what its bytes say, or refused with one message that names the file or the "
        f"key (`experiments/fuzz_{what}.py`).\n\n"
        f"{table(results)}\n\n"
        f"About {messages} different messages. The slowest case took {slowest:.1f} s of work, the largest "
        f"{largest:.0f} MiB over what the process held before; {seconds / 60:.0f} minutes in all.\n"
    )


def run(values: Any, what: str, opens: type, make: Callable[[Path], None]) -> None:
    """Runs the cases, prints the table and every fault; exits 1 where there is one.

    what: is damaged, in one word. opens: the class that opens and judges it (`fuzz_door.Door`). make: writes sound ones
    into a folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder)
        make(bases)
        if values.only is not None:
            print(run_case(opens(bases), values.seed, values.only, traced=True))
            return
        begun, cases = time.perf_counter(), iter(range(values.cases))
        with ThreadPoolExecutor(values.workers) as pool:
            shares = [pool.submit(run_share, cases, opens, bases, values.seed) for _ in range(values.workers)]
            results = sorted((r for share in shares for r in share.result()), key=lambda result: result.case)
    if values.log:
        Path(values.log).write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    if values.messages:
        Path(values.messages).write_text("".join(f"{n} x {r}\n" for n, r in distinct(results)))
    command = f"python -m experiments.fuzz_{what} --cases={values.cases} --seed={values.seed}"
    page = report(results, what, command, time.perf_counter() - begun)
    print(page)
    if values.out:
        Path(values.out).write_text(page)
    faults = [result for result in results if result.outcome.isupper()]
    if faults:
        _cli.fail(f"fuzz_{what}", "\n".join(map(str, faults[:20])), 1)


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_integer("cases", 10_000, "How many.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of all of them.")
    flags.DEFINE_integer("only", None, "The one case to run, here, with its traceback.")
    flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
    flags.DEFINE_string("out", None, "Markdown file for the table.")
    flags.DEFINE_string("log", None, "File for every case, a line of JSON each.")
    flags.DEFINE_string("messages", None, "File for one case of each message.")


if __name__ == "__main__":
    _cli.run(lambda: run(flags.FLAGS, "checkpoints", Door, make_bases), define_flags)
