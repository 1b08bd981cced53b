"""What worn adapters cost: a guided U-Net step with factors beside its kernels, against the same step without.

    python -m experiments.adapter_cost --ranks=16,16             # about 10 minutes on 2 cores, 9 GiB

Two compiled steps of the same random weights run in turns, and each turn gives a ratio; printed are the median ratio,
its spread, and the memory that the factors take. `--everywhere` puts factors beside the convolutions, too.
Expected of two adapters of rank 16 at 512 x 512 on a CPU: at most 1.08.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

from absl import flags

from experiments import _cli
from sdjax.config import UNetConfig
from sdjax.config.presets import PRESETS


def main(values: Any) -> None:
    """Prints one line for the step without adapters and one for the step with them."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sdjax.adapters.slots import Slots, attach
    from sdjax.core import tree
    from sdjax.nn.conditioning import Chunks, Conditions
    from sdjax.nn.shapes import expected_params
    from sdjax.nn.worn import Strengths
    from sdjax.runtime import programs
    from sdjax.runtime.denoisers import denoiser_of

    config = UNetConfig.from_dict(PRESETS[values.family].configs["unet"])
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> Any:
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.02)

    params = jax.tree.map(drawn, expected_params({"unet": config})["unet"])
    flat = {path: leaf for path, leaf in tree.flatten(params).items() if path[-1] == "kernel"}
    some = next(".".join(path[:-1]) for path in flat if "to_q" in path)
    touched = [some, "conv_in"] if values.everywhere else [some]
    ranks = [int(rank) for rank in values.ranks]
    factors = [
        {
            name: (np.zeros((rank, leaf.shape[-2], *leaf.shape[:-2]), np.float32), np.zeros((leaf.shape[-1], rank)))
            for path, leaf in flat.items()
            if (name := ".".join(path[:-1])) in touched
        }
        for rank in ranks
    ]
    slots = Slots.of(factors)
    assert slots is not None
    dressed = attach(params, jax.tree.map(jnp.asarray, slots.beside(params, np.float32)))
    worn = Strengths(jnp.asarray(np.tile(slots.strengths(np.ones((1, len(ranks)), np.float32)), (2, 1))))
    side = values.size // 8
    denoiser = denoiser_of(config, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, side, side, config.in_channels), np.float32))
    states = jnp.asarray(rng.standard_normal((2, 1, 77, config.cross_attention_dim), np.float32))
    steps = {}
    for name, tree_, own in (("without", params, None), ("with", dressed, worn)):
        text = Conditions(Chunks({}, states, jnp.ones(2, jnp.int32)), worn=own)
        told = programs.precompute_kv(denoiser, tree_, text)
        shifts = denoiser.per_row(tree_, jnp.full((1,), 500.0), told)
        row = jax.tree.map(lambda a: jnp.broadcast_to(a[0], (2, *a.shape[2:])), shifts)
        steps[name] = (tree_, x, row, replace(told, worn=own).worn_alike())
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(values.repeats + 1):
        for name, args in steps.items():
            begun = time.perf_counter()
            jax.block_until_ready(programs.predict(denoiser, *args))
            if turn:
                times[name].append(time.perf_counter() - begun)
                print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    ratios = sorted(b / a for a, b in zip(times["without"], times["with"], strict=True))
    size = sum(leaf.size for leaf in jax.tree.leaves(dressed)) - sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"ranks {values.ranks} of {slots.size}: with / without = {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}); factors {4 * size / 2**20:.0f} MiB in float32"
    )


if __name__ == "__main__":
    flags.DEFINE_enum("family", "sd15", sorted(PRESETS), "Whose U-Net.")
    flags.DEFINE_integer("size", 512, "Pixels of a side.", lower_bound=64)
    flags.DEFINE_list("ranks", ["16", "16"], "Of each adapter.")
    flags.DEFINE_boolean("everywhere", False, "Beside convolutions too.")
    flags.DEFINE_integer("repeats", 5, "Turns.", lower_bound=1)
    _cli.run(lambda: main(flags.FLAGS))
