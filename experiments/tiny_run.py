"""A training run in small, as a process of its own: what kill_train kills and the tests of many devices start.

    python -m experiments.tiny_run --out=run --steps=40 --accumulate=2 --fsdp=4

The U-Net of a tiny model, random latents and contexts, both functions of the step's number. XLA_FLAGS says how many
devices are simulated. With --distributed it is one of several processes, and makes its own part of every batch.
Leaves the run's folder with metrics.csv, and final.npz: the parameters and the average in the end.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.train import processes
from sdjax.config import UNetConfig, VaeConfig
from sdjax.core.tree import flatten
from sdjax.diffusion.noise import Settings, noise_schedule
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train.architecture import Architecture
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.losses.denoising import Denoising
from sdjax.train.mesh import device_mesh, own_rows
from sdjax.train.methods.full import Full
from sdjax.train.metrics import Csv
from sdjax.train.optimisers import Optimiser
from sdjax.train.rates import Constant
from sdjax.train.state import fresh
from sdjax.train.step import make_step

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 2,
    "block_out_channels": [96],
    "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["CrossAttnUpBlock2D"],
    "mid_block_type": None,
}
VAE: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 2,
}
FINAL = "final.npz"


def define_flags() -> None:
    """Called for the program only."""
    flags.DEFINE_string("out", None, "Folder of the run.", required=True)
    flags.DEFINE_enum("method", "full", ["full", "lora"], "What learns.")
    flags.DEFINE_integer("steps", 20, "Optimiser steps.", lower_bound=1)
    flags.DEFINE_integer("batch", 16, "Latents per step, all processes together.", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "Pieces of a batch.", lower_bound=1)
    flags.DEFINE_integer("fsdp", 1, "Over how many devices the state is cut.", lower_bound=1)
    flags.DEFINE_float("rate", 1e-4, "Of the steps.")
    flags.DEFINE_float("seconds", 0.0, "That a batch takes at least.")
    flags.DEFINE_float("save_seconds", 0.0, "Between checkpoints.")
    flags.DEFINE_string("distributed", None, "One of several processes: see `experiments.train.processes`.")


def method(name: str) -> Any:
    """What learns, by its name."""
    if name == "full":
        return Full()
    from sdjax.train.methods.lora import LoRA

    return LoRA()


def latents(n: int, size: int, rows: slice) -> dict[str, np.ndarray]:
    """Some rows of step n's batch of `size`."""
    rng = np.random.default_rng(n)
    whole = {"latents": rng.standard_normal((size, 8, 8, 4)), "context": rng.standard_normal((size, 5, 16))}
    return {name: values[rows].astype(np.float32) for name, values in whole.items()}


def parameters(unet: UNetConfig) -> dict[str, Any]:
    """The tiny model's, fresh and on the host."""
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), Conditions(jnp.zeros((1, 5, 16)))
    return {"unet": jax.device_get(fresh(UNet(unet), 0, *inputs))}


def main(values: Any) -> None:
    """The run."""
    processes.join(values.distributed)
    unet, mesh, learns = UNetConfig.from_dict(UNET), device_mesh(values.fsdp), method(values.method)
    levels = noise_schedule(Settings()).alphas_cumprod
    objective = Denoising(Architecture(unet, VaeConfig.from_dict(VAE), (), tuple(map(float, levels))))
    params = parameters(unet)
    trainable = learns.start(params, jax.random.key(1))
    step = make_step(
        objective, learns, trainable, params, Optimiser(), [Decay(0.9)], accumulate=values.accumulate, mesh=mesh
    )
    rows = own_rows(mesh, values.batch)

    def batch(n: int) -> dict[str, np.ndarray]:
        time.sleep(values.seconds)
        return latents(n, values.batch, rows)

    names = ("method", "batch", "accumulate", "rate")
    state = fit(
        values.out,
        step.begin(trainable),
        step,
        batch,
        Constant(values.rate),
        steps=values.steps,
        seed=3,
        settings={name: values[name].value for name in names},
        every=5,
        save_seconds=values.save_seconds,
        recorders=[Csv(Path(values.out) / "metrics.csv")],
    )
    if jax.process_count() == 1:
        kept = {"params": jax.device_get(state.params), "average": step.evaluated(state)}
        np.savez(Path(values.out) / FINAL, **{"/".join(path): leaf for path, leaf in flatten(kept).items()})


if __name__ == "__main__":
    define_flags()
    _cli.run(lambda: main(flags.FLAGS))
