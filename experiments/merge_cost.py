r"""What it costs to merge an adapter, next to safetensors' own plain read of the checkpoint's file.

    python -m experiments.merge_cost                   # SDXL's U-Net in float16, a LoRA of rank 32: 5 GB of disk
    python -m experiments.merge_cost --family=sd15     # and 6 of memory; for SD 1.5 two of each

Each in a process of its own, the better of two: safetensors' `load_file` for NumPy, the file being in the page cache by
then; and `merge` of a LoRA on every linear layer and 1x1 convolution of the transformers (kohya's usual 722 modules of
SDXL). Printed are the seconds (and those of processors' time, which other work disturbs less), the bytes of what was
made, and how far the process's memory rose beyond those: to be expected is the largest tensor in float32, once.

The parameters that are merged into are views of one piece of random numbers, so that what is measured fits beside other
work; they are read once, as any would be.
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import _cli
from experiments.load_cost import peak

MODULE = re.compile(r"(down_blocks|up_blocks|mid_block).*attentions\.\d+\..*")


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_string("family", "sdxl", "Which preset.")
    flags.DEFINE_integer("rank", 32, "Of the LoRA.")
    flags.DEFINE_string("read", None, "Of the program's own processes: way and path.")


def main() -> None:
    """Writes the file, runs each way in processes of its own, prints a line a way."""
    if flags.FLAGS.read:
        print(json.dumps(measure(*flags.FLAGS.read.split(":", 1))))
        return
    import safetensors.numpy

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.safetensors"
        safetensors.numpy.save_file({".".join(name): leaf for name, leaf in flat_params().items()}, path)
        print(f"{flags.FLAGS.family}, float16, {path.stat().st_size / 1e9:.2f} GB, rank {flags.FLAGS.rank}")
        plain = run("plain", path)
        for way, found in (("plain", plain), ("merge", run("merge", path))):
            print(
                f"{way:6} {found['seconds']:6.2f} s   {found['seconds'] / plain['seconds']:5.2f} x plain   "
                f"{found['cpu']:6.2f} s of processors   "
                f"{found['bytes'] / 1e9:.2f} GB made, {found['beside'] / 1e6:.0f} MB beside"
            )


def run(way: str, path: Path) -> dict[str, float]:
    """The better of two fresh processes' times, with the higher of their peaks."""
    values = flags.FLAGS
    command = [sys.executable, "-m", "experiments.merge_cost", f"--read={way}:{path}"]
    command += [f"--family={values.family}", f"--rank={values.rank}"]
    runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    return {name: (max if name == "beside" else min)(one[name] for one in runs) for name in runs[0]}


def flat_params() -> dict[tuple[str, ...], np.ndarray]:
    """A U-Net's parameters in float16, all of them views of as many random numbers as the largest has."""
    from experiments.convert import expected
    from sdjax.config.presets import PRESETS
    from sdjax.core import tree

    shapes = tree.flatten(expected({"unet": PRESETS[flags.FLAGS.family].configs["unet"]})["unet"])
    most = max(math.prod(leaf.shape) for leaf in shapes.values())
    pool = (0.02 * np.random.default_rng(0).standard_normal(most, np.float32)).astype(np.float16)
    return {path: pool[: math.prod(leaf.shape)].reshape(leaf.shape) for path, leaf in shapes.items()}


class Everywhere:
    """A LoRA on all that kohya's trainer covers, bound already."""

    name = "everywhere"

    def __init__(self, params: dict[tuple[str, ...], np.ndarray], rank: int) -> None:
        from sdjax.adapters.kinds import read_module

        rng = np.random.default_rng(1)
        self.modules: dict[str, Any] = {}
        for path, leaf in params.items():
            if path[-1] == "kernel" and MODULE.fullmatch(".".join(path)):
                up = rng.standard_normal((leaf.shape[-1], rank), np.float32).astype(np.float16)
                down = rng.standard_normal((rank, leaf.shape[-2]), np.float32).astype(np.float16)
                deltas = read_module({"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(0.1)})
                self.modules[".".join(path[:-1])] = {"kernel": deltas["weight"]}

    def bind(self, params: Any) -> Any:
        return {"unet": self.modules}


def measure(way: str, path: str) -> dict[str, float]:
    """Seconds, the bytes of what was made, and the rise of this process's peak memory beyond them."""
    import jax
    import safetensors.numpy

    from sdjax.adapters.merging import merge
    from sdjax.core import tree

    flat = flat_params()
    adapter, params = Everywhere(flat, flags.FLAGS.rank), {"unet": tree.unflatten(flat)}
    jax.block_until_ready(jax.device_put(np.zeros(3)))
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    if way == "plain":
        made = list(safetensors.numpy.load_file(path).values())
    else:
        merged = merge(params, [(adapter, 0.8)])
        made = [leaf for name, leaf in tree.flatten(merged["unet"]).items() if leaf is not flat[name]]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(leaf.nbytes for leaf in made)
    return {"seconds": seconds, "cpu": cpu, "bytes": size, "beside": peak() - before - size}


if __name__ == "__main__":
    define_flags()
    _cli.run(main)
