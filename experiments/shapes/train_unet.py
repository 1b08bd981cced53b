"""Stage 4 of the shapes model: the U-Net, from scratch, under the text encoder of stage 3 as it is.

    python -m experiments.shapes.train_unet --latents=runs/latents --text=runs/text --out=runs/unet --steps=20000
    python -m experiments.shapes.train_unet ... --start=runs/unet --out=runs/unet_done --decay=5000

The first runs at a constant rate for as long as one likes (--limit: so many seconds), and can be told to go on with
more steps; the second goes on from its newest state, and lets the rate fall to zero over 5000 steps more (Hagele et al.
2024): what gets shipped. Both are one compiled program.

v-prediction (Salimans & Ho 2022), its square weighed by "velocity_clipped" of `sdjax.train.losses.weightings`: 1 where
noise prevails, which is where it is decided what stands where, and as min-SNR (Hang et al. 2023) has it where little
noise is left. Timesteps are stratified over the batch. What a batch holds: `batches`.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models, train_text
from experiments.shapes.batches import OBJECT, Pictures
from experiments.shapes.optimisers import OPTIMISERS
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train.averages import Decay
from sdjax.train.loop import fit, newest_step, restore
from sdjax.train.losses.denoising import Denoising
from sdjax.train.losses.weightings import Weighting
from sdjax.train.methods.full import Full
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.state import TrainState, fresh
from sdjax.train.step import Step, make_step
from sdjax.weights import default_layout, save_component

FLAGS = flags.FLAGS

GAMMA = 5.0  # above this SNR + 1 the weight falls
WEIGHTING = Weighting("velocity_clipped", GAMMA)


def init_params(seed: int) -> dict:
    """Fresh parameters of the U-Net."""
    conditions = Conditions(jnp.zeros((1, models.MAX_LENGTH, models.TEXT_WIDTH)))
    size = models.PIXELS // 8
    x = jnp.zeros((1, size, size, 4))
    return fresh(UNet(models.UNET), seed, x, jnp.zeros((1,)), conditions)


def keep_average(folder: Path, step: Step, done: int, state: TrainState) -> None:
    """Writes the averaged parameters after 512, 1024, 2048 .. steps: `averages/<done>`, which `publish` can read."""
    if done >= 512 and done.bit_count() == 1:
        params = jax.tree.map(lambda p: np.asarray(p, np.float16), step.evaluated(state)["unet"])
        save_component(folder / "averages" / str(done), params, default_layout(params, models.UNET_JSON))


def main() -> None:
    if bool(FLAGS.start) != bool(FLAGS.decay):
        raise ValueError("--start and --decay go together: where the falling rate begins, and over how many steps")
    begun = newest_step(FLAGS.start) if FLAGS.start else 0
    steps = begun + FLAGS.decay if FLAGS.start else FLAGS.steps
    tokenizer = models.tokenizer()
    text = train_text.trained_params(FLAGS.text)
    encode, empty = train_text.encoder_of(models.text_config(tokenizer.size), text), tokenizer.tokens([""])[0]
    pictures = Pictures(
        Path(FLAGS.latents),
        encode,
        empty,
        batch=FLAGS.batch,
        seed=FLAGS.seed,
        object_weight=FLAGS.object_weight,
    )
    params = {"unet": init_params(FLAGS.seed)}
    print("parameters:", sum(p.size for p in jax.tree.leaves(params)), flush=True)
    objective = Denoising(models.architecture(), weighting=Weighting(WEIGHTING.kind, FLAGS.gamma))
    step = make_step(objective, Full(), params, params, OPTIMISERS[FLAGS.optimiser], [Decay(FLAGS.ema)])
    state = step.begin(params)
    names = ("batch", "optimiser", "learning_rate", "ema", "seed", "gamma", "object_weight", "start", "decay")
    fit(
        FLAGS.out,
        restore(FLAGS.start, state) if FLAGS.start else state,
        step,
        pictures.batch,
        WarmupStableDecay(FLAGS.learning_rate, steps, FLAGS.decay),
        steps=steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names} | {"begun": begun, "unet": models.UNET_JSON},
        limit_seconds=FLAGS.limit,
        watch=partial(keep_average, Path(FLAGS.out), step),
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    flags.DEFINE_string("latents", "runs/latents", "Folder that stage 2 wrote.")
    flags.DEFINE_string("text", "runs/text", "Folder of stage 3's run.")
    flags.DEFINE_string("out", "runs/unet", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("steps", 20000, "Optimiser steps at a constant rate; more of them go on with a run.")
    flags.DEFINE_float("limit", None, "Seconds after which it saves and stops.")
    flags.DEFINE_string("start", None, "Folder of a run at a constant rate; from its newest state the rate falls.")
    flags.DEFINE_integer("decay", 0, "Over how many steps it falls to zero.", lower_bound=0)
    flags.DEFINE_integer("batch", 64, "Pictures per step.", lower_bound=1)
    flags.DEFINE_enum("optimiser", "muon", list(OPTIMISERS), "The optimiser.")
    flags.DEFINE_float("gamma", GAMMA, "Above this SNR + 1 the weight of the error falls.")
    flags.DEFINE_float("object_weight", OBJECT, "Weight of an object's latents, the ground's being 1.")
    flags.DEFINE_float("learning_rate", 0.01, "Peak rate of the kernels.")
    flags.DEFINE_float("ema", 0.999, "Decay of the averaged parameters.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
