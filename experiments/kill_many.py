"""Kills generate_many at random moments, and looks at what is left each time.

    python -m experiments.kill_many --kills=20                    # about 5 minutes on 2 cores

Every run makes what is missing of --pictures and is ended by SIGKILL at a moment drawn between its start and --seconds
after it. Then every picture must be whole, those of the runs before the same file as ever, byte for byte, and none
gone. The last run is left alone: all pictures must be there, in the manifest too, and equal to those of a run in
another folder that nobody killed. Prints a line a kill, and at the end as

    20 kills, 14 with pictures made: 60 of 60 pictures, none lost, none made twice, none torn, 3 half-written swept away
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star")


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_integer("kills", 20, "How many times.", lower_bound=1)
    flags.DEFINE_integer("pictures", 120, "Prompts.", lower_bound=1)
    flags.DEFINE_integer("batch", 2, "Pictures at once.", lower_bound=1)
    flags.DEFINE_float("seconds", 12.0, "The latest moment of a kill.", lower_bound=0.1)
    flags.DEFINE_integer("seed", 0, "Of the moments.", lower_bound=0)
    flags.DEFINE_string("model", None, "As generate_many's.")


def command(values: Any, prompts: Path, out: Path) -> list[str]:
    """One run of generate_many."""
    made = [sys.executable, "-m", "experiments.generate_many", f"--prompts_file={prompts}", f"--out={out}", "--steps=2"]
    return [*made, f"--batch={values.batch}", *([f"--model={values.model}"] if values.model else [])]


def killed(run: list[str], seconds: float) -> bool:
    """Starts it and kills it after so long; whether it was still at work."""
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def look(out: Path) -> dict[str, tuple[int, bytes]]:
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
    """Kills, looks, lets the last run end, compares."""
    moments = random.Random(values.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prompts, out, whole = root / "prompts.txt", root / "killed", root / "whole"
        lines = [f"a {moments.choice(COLOURS)} {moments.choice(SHAPES)}" for _ in range(values.pictures)]
        prompts.write_text("\n".join(lines))
        there: dict[str, Any] = {}
        at_work = partial = 0
        for i in range(values.kills):
            seconds = moments.uniform(0, values.seconds)
            was = killed(command(values, prompts, out), seconds)
            now = look(out)
            compare(there, now)
            unfinished = len(list(out.glob(".*.partial")))
            at_work, partial = at_work + (len(now) > len(there)), partial + unfinished
            how = "killed" if was else "ended by itself"
            print(f"{i + 1}: {how} at {seconds:.2f} s, {len(now)} pictures, {unfinished} half-written", flush=True)
            there = now
        for place in (out, whole):
            subprocess.run(command(values, prompts, place), check=True, stdout=subprocess.DEVNULL)
        compare(there, look(out))
        check(look(out), look(whole), out, values.pictures)
    print(
        f"{values.kills} kills, {at_work} with pictures made: {values.pictures} of {values.pictures} pictures, "
        f"none lost, none made twice, none torn, {partial} half-written swept away"
    )


def check(made: dict[str, Any], whole: dict[str, Any], out: Path, count: int) -> None:
    """Raises ValueError where the end is not that of a run that was left alone."""
    listed = [json.loads(line)["file"] for line in (out / "manifest.jsonl").read_text().splitlines()]
    if listed != sorted(made) or len(made) != count or list(out.glob(".*.partial")):
        raise ValueError(f"{len(made)} pictures and {len(listed)} in the manifest, of {count}")
    other = [name for name in made if made[name][1] != whole[name][1]]
    if other:
        raise ValueError(f"{other[0]} is another picture than in a run that was left alone")


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
