"""What the sampling loop itself costs: everything but the network, against one step of Stable Diffusion 1.5.

    python -m experiments.loop_cost                  # about 3 minutes on 2 cores, 5 GiB

Runs whole plans at SD 1.5's latent size with a network that does next to nothing, and prints for each the time of a
row, its share of one guided U-Net step at 512 x 512 (random weights, timed in the same run), and the memory that the
compiled loop takes. `dpmpp_sde` draws two pieces of its Brownian path a step; `ddpm` has a thousand rows.
Expected: all shares under 2 %; memory 2 x 64 KiB a row and picture, so 128 MiB for a thousand.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from absl import flags

from experiments import _cli
from experiments.benchmark import ours
from experiments.benchmark.subject import Job
from sdjax.config.presets import PRESETS

RUNS = (("euler", 20), ("dpmpp_2m", 50), ("unipc", 50), ("dpmpp_sde", 25), ("euler_ancestral", 50), ("ddpm", 1000))


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, after one that compiles."""
    import jax

    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main(values: Any) -> None:
    """Times the U-Net step, then the loops; prints a table."""
    import jax
    import jax.numpy as jnp

    from sdjax.diffusion import scan
    from sdjax.diffusion.plan import plan

    step = seconds(ours.steps(Job("unet_step", "sd15", 512, values.batch)), values.repeats)
    print(f"one guided U-Net step, batch {values.batch}: {step:.3f} s\n")
    print("| sampler | steps | rows | ms a row | share of a step | memory, MiB |\n|---|---|---|---|---|---|")
    run = jax.jit(lambda table, x, keys: scan.run(table, lambda x, t: 0.9 * x, x, keys))
    x = jnp.ones((values.batch, 64, 64, 4))
    keys = jax.random.split(jax.random.key(0), values.batch)
    for name, steps in RUNS:
        the_plan = plan(name, steps, PRESETS["sd15"].scheduler, "trailing")
        table = the_plan.table()
        compiled: Any = run.lower(table, x, keys).compile().memory_analysis()
        memory = compiled.temp_size_in_bytes / 2**20
        row = seconds(partial(run, table, x, keys), values.repeats) / the_plan.rows
        print(
            f"| {name} | {steps} | {the_plan.rows} | {1000 * row:.2f} | {row / step:.3%} | {memory:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    flags.DEFINE_integer("batch", 1, "Pictures at once.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Timed calls of each.", lower_bound=1)
    _cli.run(lambda: main(flags.FLAGS))
