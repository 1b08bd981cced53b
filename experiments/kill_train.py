"""Kills training runs at random moments, starts them again, and compares what they end as with runs left alone.

    python -m experiments.kill_train --kills=20                   # about 10 minutes on 2 cores
    python -m experiments.kill_train --kills=20 --methods=full

Every run is experiments/tiny_run: a U-Net in small, with and without accumulation, full and LoRA, on 1 and 4 simulated
devices. Of each kind one is left alone. Others are killed, again and again, by SIGKILL or SIGTERM, drawn, at a moment
drawn too: one in four at any time from its start on, the others a while after a new checkpoint (a run saves after every
step, so that many die as they save), and started again; then the last one is left alone. Of these some go on on as many
devices each time, and must end as the run left alone, bit for bit, by the fingerprints of every leaf of the state; the
others change between 1 and 4 each time, and must end within 1e-6 of it. One that SIGTERM ends must exit with 75 and
have a checkpoint. Prints a line a kill, and at the end as

    20 kills (11 SIGKILL, 9 SIGTERM) of 12 runs: 8 of 8 bit for bit, 4 of 4 on other devices within 1e-6 (5.2e-08)
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _cli
from sdjax.train.checkpoint import saved_steps
from sdjax.train.interrupt import STATUS

FEW, MANY = 1, 4
CLOSE = 1e-6
START = 20.0  # seconds in which one dies that need not have saved anything


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_integer("kills", 20, "How many times, at least; every run is killed as often.", lower_bound=1)
    flags.DEFINE_integer("steps", 20, "Of a run.", lower_bound=2)
    flags.DEFINE_list("methods", ["full", "lora"], "What learns.")
    flags.DEFINE_list("accumulate", ["1", "2"], "In how many pieces a batch is.")
    flags.DEFINE_float("seconds", 0.5, "The latest moment of a kill, after a new checkpoint.", lower_bound=0.01)
    flags.DEFINE_integer("seed", 0, "Of the moments.", lower_bound=0)


@dataclass(frozen=True)
class Kind:
    """What a run is, and on how many devices it is, time after time: on all of `devices` in turn."""

    method: str
    accumulate: str
    devices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.method}_{self.accumulate}_{'and'.join(map(str, self.devices))}"

    def start(self, folder: Path, steps: int, turn: int) -> "subprocess.Popen[bytes]":
        """The run's process, or the next one of it."""
        count = self.devices[turn % len(self.devices)]
        options = [f"--out={folder / str(self)}", f"--steps={steps}", f"--fsdp={count}"]
        options += [f"--method={self.method}", f"--accumulate={self.accumulate}"]
        environment = {  # every program is compiled once, and optimised: the steps are to be short
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.tiny_run", *options],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def finish(kind: Kind, folder: Path, steps: int, turn: int) -> None:
    """Starts a run and leaves it alone. Raises ValueError where it fails."""
    process = kind.start(folder, steps, turn)
    _, told = process.communicate()
    if process.returncode:
        raise ValueError(f"{kind} failed with {process.returncode}: {told.decode(errors='replace')[-1000:]}")


def newest(run: Path) -> int:
    """How many steps of a run are saved; 0 before any."""
    return max(saved_steps(run / "checkpoints"), default=0)


def kill(kind: Kind, folder: Path, values: Any, turn: int, moments: random.Random) -> int | None:
    """Starts a run and ends it by a signal, which is given back; None where it was done before."""
    run, number = folder / str(kind), moments.choice((signal.SIGKILL, signal.SIGTERM))
    before, early = newest(run), moments.random() < 0.25
    more = 0 if early else moments.randint(1, max(1, values.steps // 4))
    process = kind.start(folder, values.steps, turn)
    while newest(run) < before + more and process.poll() is None:
        time.sleep(0.005)
    try:
        process.wait(moments.uniform(0, START if early else values.seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    process.communicate()
    print(f"{kind}: {signal.Signals(number).name} after {before} + {newest(run) - before} steps", flush=True)
    if process.returncode == 0:
        return None
    if process.returncode not in (-number, STATUS if number == signal.SIGTERM else -number):
        raise ValueError(f"{kind} ended with {process.returncode} by {signal.Signals(number).name}")
    if process.returncode == STATUS and not newest(run):
        raise ValueError(f"{kind}: SIGTERM was heard and nothing saved")
    return number


def marks(run: Path, steps: int) -> dict[str, str]:
    """The fingerprint of every leaf of a run's last state."""
    about = json.loads((run / "checkpoints" / f"step_{steps}" / "about" / "metadata").read_text())
    return {name: leaf["fingerprint"] for name, leaf in about["told"]["leaves"].items()}


def apart(run: Path, whole: Path) -> float:
    """The largest difference between the parameters, and averages, that two runs ended with."""
    with (
        np.load(run / "final.npz", allow_pickle=False) as ours,
        np.load(whole / "final.npz", allow_pickle=False) as theirs,
    ):
        return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs.files)


def main(values: Any) -> None:
    """Runs left alone, then those that are killed; compares."""
    moments, pairs = random.Random(values.seed), list(product(values.methods, values.accumulate))
    whole = [Kind(*pair, devices=(count,)) for pair in pairs for count in (FEW, MANY)]
    kinds = whole + [Kind(*pair, devices=(FEW, MANY)) for pair in pairs]
    with tempfile.TemporaryDirectory() as root:
        alone, killed = Path(root) / "alone", Path(root) / "killed"
        for kind in whole:
            finish(kind, alone, values.steps, 0)
            print(f"{kind}: left alone", flush=True)
        signals: list[int] = []
        for kind in kinds:
            each = -(-values.kills // len(kinds))
            signals += [one for turn in range(each) if (one := kill(kind, killed, values, turn, moments))]
            finish(kind, killed, values.steps, each)
        other = [Kind(kind.method, kind.accumulate, (FEW,)) for kind in kinds[len(whole) :]]
        most = max(apart(killed / str(a), alone / str(b)) for a, b in zip(kinds[len(whole) :], other, strict=True))
        for kind in whole:
            if marks(killed / str(kind), values.steps) != marks(alone / str(kind), values.steps):
                raise ValueError(f"{kind} ended as another state than the run that was left alone")
    if most > CLOSE:
        raise ValueError(f"on other devices a run ended {most:.1e} away from the run that was left alone")
    kinds_of = f"{signals.count(signal.SIGKILL)} SIGKILL, {signals.count(signal.SIGTERM)} SIGTERM"
    print(
        f"{len(signals)} kills ({kinds_of}) of {len(kinds)} runs: {len(whole)} of {len(whole)} bit for bit, "
        f"{len(other)} of {len(other)} on other devices within {CLOSE:g} ({most:.1e})"
    )


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
