r"""What loading costs, next to safetensors' own plain read of the same file.

    python -m experiments.load_cost          # Stable Diffusion 1.5 in float16, 2.1 GB; about a minute, 5 GB of memory
    python -m experiments.load_cost --family=sdxl --dtype=float32 --compute=bfloat16   # 28 GB of disk, 15 of memory

Three processes read the same single file, which lies in the page cache by then: safetensors' `load_file` for NumPy,
sdjax as it loads a model (names settled, axes turned, NaN looked for, on the device), and sdjax through a folder in the
diffusers layout. Printed are the seconds, and how far the process's memory rose at its highest, file pages counted, by
the bytes of the parameters that are computed with. To be expected: a peak below 1.3 (of a plain read more where the
file is wider than what is computed in), and a time within a few times the plain read's.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from experiments.convert import expected

WAYS = ("plain", "single_file", "folder")


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_string("family", "sd15", "Which preset.")
    flags.DEFINE_enum("dtype", "float16", ["float16", "bfloat16", "float32"], "What the file stores.")
    flags.DEFINE_enum("compute", None, ["float16", "bfloat16", "float32"], "What is computed in; default: as stored.")
    flags.DEFINE_string("read", None, "Of the program's own processes: way and path.")


def main() -> None:
    """Makes the files, reads each in a process of its own, prints a line a way."""
    if flags.FLAGS.read:
        print(json.dumps(measure(*flags.FLAGS.read.split(":", 1))))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder), flags.FLAGS.family, flags.FLAGS.dtype)
        print(f"{flags.FLAGS.family}, {flags.FLAGS.dtype}, {paths['plain'].stat().st_size / 1e9:.2f} GB")
        found = {way: run(way, paths[way]) for way in WAYS}
        for way, (seconds, peak) in found.items():
            ratio = seconds / found["plain"][0]
            print(f"{way:12} {seconds:6.2f} s   {ratio:5.2f} x plain   peak {peak:.2f} x the parameters")


def make(folder: Path, family: str, dtype: str) -> dict[str, Path]:
    """The files: all weights 0.5, which cost as much to read as any."""
    import jax
    import numpy as np

    from sdjax import weights
    from sdjax.config.presets import PRESETS

    configs = PRESETS[family].configs
    components = {}
    for name, tree in expected(configs).items():
        half = partial(np.broadcast_to, np.asarray(0.5, jax.numpy.dtype(dtype)))  # which takes no memory
        params = jax.tree.map(lambda leaf, half=half: half(leaf.shape), tree)
        components[name] = params, weights.default_layout(params, configs[name])
    path = folder / "model.safetensors"
    weights.save_single_file(path, configs, components, PRESETS[family].scheduler)
    weights.save_folder(folder / "folder", components, weights.open_checkpoint(path).files)
    return {"plain": path, "single_file": path, "folder": folder / "folder"}


def run(way: str, path: Path) -> tuple[float, float]:
    """The better of two fresh processes' times, and the higher of their peaks."""
    values = flags.FLAGS
    command = [sys.executable, "-m", "experiments.load_cost", f"--read={way}:{path}", f"--family={values.family}"]
    command.append(f"--compute={values.compute or values.dtype}")
    runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    return min(seconds for seconds, _ in runs), max(peak for _, peak in runs)


def measure(way: str, path: str) -> tuple[float, float]:
    """Seconds of one read, and the rise of this process's peak memory by the bytes of what is computed with."""
    import jax
    import numpy as np
    import safetensors.numpy

    import sdjax
    from sdjax.config.presets import PRESETS

    compute = jax.numpy.dtype(flags.FLAGS.compute)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(expected(PRESETS[flags.FLAGS.family].configs)))
    jax.block_until_ready(jax.device_put(np.zeros(3)))
    before, start = peak(), time.perf_counter()
    if way == "plain":
        held: Any = safetensors.numpy.load_file(path)
    else:
        held = sdjax.load(path, dtype=compute, compilation_cache=False)
    seconds = time.perf_counter() - start
    del held
    return seconds, (peak() - before) / (numbers * compute.itemsize)


def peak() -> int:
    """The most memory that this process has had, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    define_flags()
    _cli.run(main)
