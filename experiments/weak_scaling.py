"""What one device has to do as the devices grow in number, read from the compiled program: no picture is made.

    python -m experiments.weak_scaling                       # about 3 minutes on 2 cores

Compiles the sampling loop of the shapes model on 1, 2, 8 and 64 simulated devices in three ways: `data`
(`parallel.spread`, two pictures for each device), `halves` (two for each pair, and each device one half of their
guidance), and `sharded` (`parallel.shard`: parameters cut, two pictures in all). For each: FLOPs and bytes of one
device as XLA counts them, the parameters that it holds, and the collectives that stand in the program, by kind.

Prints a Markdown table. Expected: `data` has the same FLOPs and bytes at any number and not one collective; `halves`
about half the FLOPs and one all-gather, that of the answers; `sharded` fewer with every device, and collectives in
every layer.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

from absl import flags

from experiments import _cli

COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
WAYS = ("data", "halves", "sharded")
PICTURES = 2


class Stop(Exception):
    """The loop's arguments are known, and nothing more is wanted."""


def define_flags() -> None:
    """Called for the program only: who imports this file may name flags of their own as they like."""
    flags.DEFINE_list("devices", ["1", "2", "8", "64"], "How many, simulated.")
    flags.DEFINE_string("model", None, "A folder, a file, a Hub id; default: the shapes model.")
    flags.DEFINE_enum("measure", None, WAYS, "For this program itself: one way, on the devices that there are.")


def collectives(program: str) -> dict[str, int]:
    """How many of each kind stand in the text of a compiled program."""
    return dict(sorted(Counter(COLLECTIVE.findall(program)).items()))


def measure(model: str | None, way: str) -> dict[str, Any]:
    """Compiles the loop for the devices of this process."""
    import jax

    import sdjax
    from sdjax import parallel
    from sdjax.core.devices import local

    sd = sdjax.load(model, compilation_cache=False)
    devices = len(local(None))
    made = parallel.shard(sd) if way == "sharded" else parallel.spread(sd, halves=way == "halves")
    pictures = {"data": devices, "halves": devices // 2, "sharded": 1}[way] * PICTURES
    compiled = lowered(made, pictures).compile()
    cost = compiled.cost_analysis()
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(made.params["unet"]))
    return {
        "FLOPs": cost["flops"],
        "bytes": cost["bytes accessed"],
        "parameters": held,
        "collectives": collectives(compiled.as_text()),
    }


def lowered(sd: Any, pictures: int) -> Any:
    """The loop that `sd.generate` would run for so many pictures, before it is compiled."""
    from dataclasses import replace

    inner, found = sd.programs, []

    class Caught:
        """The programs of `sd`, of which the loop is lowered in place of being run."""

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def run_rows(self, denoiser: Any, carry: Any, rows: Any, params: Any, *told: Any) -> None:
            if hasattr(inner, "loop"):
                found.append(inner.loop(denoiser).lower(carry.carry, inner.rows(rows), params, *told))
            else:
                found.append(inner.run_rows.lower(denoiser, carry, rows, params, *told))
            raise Stop

    try:
        replace(sd, programs=Caught()).generate(["a red circle"] * pictures, progress=False)
    except Stop:
        return found[0]
    raise AssertionError("generate always comes to its loop")


def main(values: Any) -> None:
    """One process for each way and number, since a process has as many devices as it began with."""
    if values.measure:
        print(json.dumps(measure(values.model, values.measure)))
        return
    print("| | devices | GFLOP | MB read and written | MB of parameters | collectives |\n|---|---|---|---|---|---|")
    for way in WAYS:
        for devices in map(int, values.devices):
            if way == "halves" and devices % 2:
                continue
            row = apart(way, devices, values.model)
            kinds = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items()) or "none"
            numbers = (row["FLOPs"] / 1e9, row["bytes"] / 1e6, row["parameters"] / 1e6)
            print(f"| {way} | {devices} | {' | '.join(f'{one:.2f}' for one in numbers)} | {kinds} |", flush=True)


def apart(way: str, devices: int, model: str | None) -> dict[str, Any]:
    """`measure` in a process with so many devices."""
    command = [sys.executable, "-m", "experiments.weak_scaling", f"--measure={way}"]
    command += [] if model is None else [f"--model={model}"]
    # What is read here is settled before LLVM makes code of it.
    flags_ = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    simulated = {"XLA_FLAGS": flags_, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, env=os.environ | simulated, capture_output=True, text=True)
    if ran.returncode:
        raise ValueError(f"{way} on {devices} devices: {ran.stderr.strip().splitlines()[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
