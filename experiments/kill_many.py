"""Kills generate_many at random moments, and looks at what is left each time.

    python -m experiments.kill_many --kills=20                    # about 5 minutes on 2 cores
    python -m experiments.kill_many --kills=20 --processes=4

A first run is left alone, in a folder of its own. In another, --processes at once make the same --pictures. Again and
again one of them, drawn, is ended by SIGKILL and another is started: up to --seconds after so many new pictures, both
drawn too; one in four at any time from its start on. Then every picture must be whole, those there were before the same
file as ever, byte for byte, and none gone. A last run is left alone: all pictures must be there, in the manifest too,
nothing else, and equal to the first run's. Prints a line a kill, and at the end as

    20 kills: 240 of 240 pictures, none lost, none made twice, none torn
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star")
START = 5.0  # seconds in which one dies that need not have made anything


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_integer("kills", 20, "How many times.", lower_bound=1)
    flags.DEFINE_integer("pictures", 240, "Prompts.", lower_bound=1)
    flags.DEFINE_integer("processes", 1, "At once.", lower_bound=1)
    flags.DEFINE_integer("batch", 2, "Pictures at once.", lower_bound=1)
    flags.DEFINE_float(
        "seconds", 0.2, "The latest moment of a kill, after the pictures that a run is to make.", lower_bound=0.01
    )
    flags.DEFINE_integer("seed", 0, "Of the moments.", lower_bound=0)
    flags.DEFINE_string("model", None, "As generate_many's.")


def command(values: Any, prompts: Path, out: Path) -> list[str]:
    """One run of generate_many."""
    made = [sys.executable, "-m", "experiments.generate_many", f"--prompts_file={prompts}", f"--out={out}", "--steps=2"]
    return [*made, f"--batch={values.batch}", *([f"--model={values.model}"] if values.model else [])]


def start(run: list[str]) -> "subprocess.Popen[bytes]":
    """A process of it, whose output is nobody's."""
    return subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(process: "subprocess.Popen[bytes]", out: Path, pictures: int, seconds: float) -> bool:
    """Kills it so many seconds after so many new pictures; whether it was still running."""
    before = count(out)
    while count(out) < before + pictures and process.poll() is None:
        time.sleep(0.001)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def count(out: Path) -> int:
    """How many pictures there are."""
    return sum(1 for _ in out.glob("*.png"))


def inspect_row(out: Path) -> dict[str, tuple[int, bytes]]:
    """Every picture's inode and bytes, by name. Raises ValueError for one that is torn."""
    from PIL import Image

    found = {}
    for path in sorted(out.glob("*.png")):
        try:
            with Image.open(path) as image:
                image.load()
        except OSError as error:
            raise ValueError(f"{path} is torn: {error}") from None
        found[path.name] = path.stat().st_ino, path.read_bytes()
    return found


def compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError for a picture that is gone or was made again."""
    for name, seen in before.items():
        if name not in now:
            raise ValueError(f"{name} was lost")
        if now[name] != seen:
            raise ValueError(f"{name} was made twice")


def main(values: Any) -> None:
    """A run that is left alone, then kills and looks, then a last run; compares."""
    moments = random.Random(values.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prompts, out, whole = root / "prompts.txt", root / "killed", root / "whole"
        lines = [f"a {moments.choice(COLOURS)} {moments.choice(SHAPES)}" for _ in range(values.pictures)]
        prompts.write_text("\n".join(lines))
        subprocess.run(command(values, prompts, whole), check=True, stdout=subprocess.DEVNULL)
        kills = kill(values, command(values, prompts, out), out, moments)
        there = inspect_row(out)
        subprocess.run(command(values, prompts, out), check=True, stdout=subprocess.DEVNULL)
        compare(there, inspect_row(out))
        check(inspect_row(out), inspect_row(whole), out, values.pictures)
    print(f"{kills} kills: {values.pictures} of {values.pictures} pictures, none lost, none made twice, none torn")


def kill(values: Any, run: list[str], out: Path, moments: random.Random) -> int:
    """Kills and looks, and waits for those that were not killed; how many were."""
    there: dict[str, Any] = {}
    running: list[subprocess.Popen[bytes]] = []
    kills = 0
    for i in range(values.kills):
        running = [one for one in running if one.poll() is None]
        running += [start(run) for _ in range(values.processes - len(running))]
        # One in four dies at any time; the others share out what there is to make.
        pictures = 0 if i % 4 == 0 else moments.randint(1, max(1, values.pictures // values.kills))
        seconds = moments.uniform(0, START if pictures == 0 else values.seconds)
        kills += killed(moments.choice(running), out, pictures, seconds)
        now = inspect_row(out)
        compare(there, now)
        print(f"{i + 1}: {seconds:.3f} s after {pictures} new: {len(now)} pictures", flush=True)
        there = now
    for one in running:
        one.wait()
    return kills


def check(made: dict[str, Any], whole: dict[str, Any], out: Path, pictures: int) -> None:
    """Raises ValueError where the end is not that of a run that was left alone."""
    listed = [json.loads(line)["file"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    if listed != sorted(made) or len(made) != pictures:
        raise ValueError(f"{len(made)} pictures and {len(listed)} in the manifest, of {pictures}")
    if left := {path.name for path in out.iterdir()} - {*made, "manifest.jsonl", "begun.json"}:
        raise ValueError(f"{out} holds {sorted(left)[0]}, which a killed process left")
    other = [name for name in made if made[name][1] != whole[name][1]]
    if other:
        raise ValueError(f"{other[0]} is another picture than in a run that was left alone")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
