"""Stage 1 of the shapes model: the autoencoder.

    python -m experiments.shapes.train_vae --out=runs/vae

Random crops first (cheap, every one holds an edge), whole pictures for the last part. Loss: L1 + L2 + half the L1 of
the picture's gradients (edges are the whole content of a flat-coloured picture) + a very small KL; the decoder also
sees latents with Gaussian noise of a tenth of their spread, since what it gets from the U-Net will not be exact.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models, world
from experiments.shapes.optimisers import OPTIMISERS
from sdjax.images.pixels import from_uint8
from sdjax.nn.vae import Autoencoder, Posterior
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.losses.autoencoding import BLUR, Autoencoding, sample
from sdjax.train.methods.vae import VaeTraining
from sdjax.train.objective import Batch, standard_normal
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.state import fresh
from sdjax.train.step import make_step

FLAGS = flags.FLAGS


def crops(n: int, count: int, size: int, seed: int) -> np.ndarray:
    """`count` crops of step n's pictures, each with an object's edge in it, float32 `b h w 3` in [-1, 1]."""
    rng = np.random.default_rng([seed, 1, n])
    pictures, _ = world.dataset(seed, n * count, count)
    out = np.empty((count, size, size, 3), np.float32)
    for i, picture in enumerate(pictures):
        inside = np.argwhere((picture != picture[0, 0]).any(-1))
        middle = inside[rng.integers(len(inside))] + rng.integers(-size // 4, size // 4 + 1, 2)
        y, x = np.clip(middle - size // 2, 0, picture.shape[0] - size)
        out[i] = from_uint8(picture[y : y + size, x : x + size])
    return out


@dataclass(frozen=True)
class Reconstruction(Autoencoding):
    """The loss above: the library's, but for the spread, which is here that of the whole batch.

    A crop that is all but flat in a channel has next to none of its own there.
    """

    def _blurred(self, posterior: Posterior, batch: Batch) -> jax.Array:
        spread = jax.lax.stop_gradient(jnp.std(posterior.mean, axis=(0, 1, 2)))
        latents = sample(posterior, batch)
        return latents + self.noise * spread * standard_normal(batch["keys"], BLUR, latents.shape[1:])


def main() -> None:
    params = {"vae": fresh(Autoencoder(models.VAE), FLAGS.seed, jnp.zeros((1, 64, 64, 3)))}
    objective, method = Reconstruction(models.VAE, kl=1e-5, noise=0.1), VaeTraining(models.VAE)
    step = make_step(objective, method, params, params, OPTIMISERS[FLAGS.optimiser], [Decay(0.998)])
    whole_from = int((1 - FLAGS.whole) * FLAGS.steps)

    def batch(n: int) -> dict[str, np.ndarray]:
        if n < whole_from:
            return {"pixels": crops(n, FLAGS.batch, FLAGS.crop, FLAGS.seed)}
        pictures, _ = world.dataset(FLAGS.seed, n * FLAGS.batch, FLAGS.batch // 4)
        return {"pixels": from_uint8(pictures)}

    settings = {
        name: FLAGS[name].value for name in ("steps", "batch", "crop", "whole", "optimiser", "learning_rate", "seed")
    }
    fit(
        FLAGS.out,
        step.begin(params),
        step,
        batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall=2 * FLAGS.steps // 5),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings=settings,
    )


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/vae", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("steps", 3500, "Optimiser steps.")
    flags.DEFINE_integer("batch", 16, "Crops per step.")
    flags.DEFINE_integer("crop", 64, "Height and width of a crop, pixels.")
    flags.DEFINE_float("whole", 0.15, "Part of the steps, at the end, on whole pictures (a quarter as many per step).")
    flags.DEFINE_enum("optimiser", "muon", list(OPTIMISERS), "The optimiser.")
    flags.DEFINE_float("learning_rate", 0.01, "Peak rate of the kernels.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
