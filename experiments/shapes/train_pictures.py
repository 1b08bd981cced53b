"""The two U-Nets that see more than a text: inpainting (9 channels) and depth (5 channels).

    python -m experiments.shapes.train_pictures --task=inpainting --data=runs/inpainting_data --out=runs/inpainting
    python -m experiments.shapes.train_pictures --task=depth --data=runs/depth_data --out=runs/depth --steps=2400

30 and 43 minutes on 2 CPU cores that trained both at once.

The loss is stage 4's (`train_unet`), and so are the noise, the optimiser and the empty captions. The
text encoder is the shipped one and stays as it is, so every caption is encoded once.

Inpainting starts as the shipped U-Net, its first convolution widened by kernels of zeros: at step 0 it paints as that
one does, blind to the mask. What counts is the hole, and the latents beside it, whose pixels it may cut through:
there the error weighs 1, elsewhere REST, and each picture the same in all. Depth starts from nothing and is smaller:
outlines and places come with the map.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models, train_text
from experiments.shapes.batches import EMPTY, arrays
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import WEIGHTING
from sdjax.config import ClipTextConfig, UNetConfig
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.losses.denoising import Denoising
from sdjax.train.methods.full import Full
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.state import fresh
from sdjax.train.step import make_step

FLAGS = flags.FLAGS

REST = 0.1
"""Weight of the error far from the hole; 1 in it."""


def shipped_unet() -> dict:
    """Parameters of the shipped U-Net, float32."""
    return _read("unet", models.UNET)


def text_encoder() -> tuple[ClipTextConfig, dict]:
    """The shipped text encoder's config and parameters, float32."""
    config = models.text_config(models.tokenizer().size)
    return config, _read("text_encoder", config)


def _read(name: str, config: ClipTextConfig | UNetConfig) -> dict:
    return jax.tree.map(lambda p: np.asarray(p, np.float32), models.shipped(name, config))


def initial(task: str, seed: int) -> dict:
    """The parameters before the first step."""
    if task == "inpainting":
        params = shipped_unet()
        kernel = params["conv_in"]["kernel"]
        more = models.PICTURE_UNETS[task]["in_channels"] - kernel.shape[2]
        params["conv_in"]["kernel"] = np.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
        return params
    config = UNetConfig.from_dict(models.PICTURE_UNETS[task])
    x = jnp.zeros((1, config.sample_size, config.sample_size, config.in_channels))
    conditions = Conditions(jnp.zeros((1, models.MAX_LENGTH, models.TEXT_WIDTH)))
    return fresh(UNet(config), seed, x, jnp.zeros((1,)), conditions)


def contexts(ids: np.ndarray) -> np.ndarray:
    """The texts as the shipped encoder gives them: float16 [n, l, d] of ids [n, l]."""
    encode = train_text.encoder_of(*text_encoder())
    return np.concatenate([np.asarray(encode(ids[n : n + 1000]), np.float16) for n in range(0, len(ids), 1000)])


def hole_weights(mask: np.ndarray) -> np.ndarray:
    """Weights float32 [b, h, w, 1], mean 1 in each picture, of masks [b, h, w, 1]: full within one latent of it."""
    wide = np.pad(mask, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = mask.shape[1:3]
    beside = np.max([wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    weights = np.float32(REST) + np.float32(1 - REST) * beside
    return weights / weights.mean((1, 2, 3), keepdims=True)


class Pictures:
    """The encoded pictures in memory, and the batch of any step."""

    def __init__(self, folder: Path, task: str, *, batch: int, seed: int) -> None:
        file = arrays(folder / "pictures.npz", ("latents", "channels", "ids"))
        self.latents, self.channels, self.contexts = file["latents"], file["channels"], contexts(file["ids"])
        self.empty = contexts(models.tokenizer().tokens([""]))[0]
        self.task, self.size, self.seed = task, batch, seed

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `Denoising` takes it: any pictures, each with any of its holes."""
        rng = np.random.default_rng([self.seed, n])
        chosen = rng.integers(len(self.latents), size=self.size)
        context = self.contexts[chosen]
        context[rng.random(self.size) < EMPTY] = self.empty
        channels = self.channels[chosen, rng.integers(self.channels.shape[1], size=self.size)]
        batch = {"latents": self.latents[chosen], "channels": channels, "context": context}
        return batch | ({"weights": hole_weights(channels[..., :1])} if self.task == "inpainting" else {})


def main() -> None:
    pictures = Pictures(Path(FLAGS.data), FLAGS.task, batch=FLAGS.batch, seed=FLAGS.seed)
    params = {"unet": initial(FLAGS.task, FLAGS.seed)}
    print("parameters:", sum(p.size for p in jax.tree.leaves(params)), "pictures:", len(pictures.latents), flush=True)
    architecture = models.architecture(UNetConfig.from_dict(models.PICTURE_UNETS[FLAGS.task]))
    objective = Denoising(architecture, weighting=WEIGHTING)
    step = make_step(objective, Full(), params, params, OPTIMISERS[FLAGS.optimiser], [Decay(FLAGS.ema)])
    names = ("task", "steps", "batch", "optimiser", "learning_rate", "ema", "seed")
    fit(
        FLAGS.out,
        step.begin(params),
        step,
        pictures.batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall=FLAGS.steps // 2),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names},
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    flags.DEFINE_enum("task", None, list(models.PICTURE_UNETS), "Which of the two.", required=True)
    flags.DEFINE_string("data", None, "Folder that encode_pictures wrote.", required=True)
    flags.DEFINE_string("out", None, "Folder of the run; started again, it goes on where it was.", required=True)
    flags.DEFINE_integer("steps", 600, "Optimiser steps.")
    flags.DEFINE_integer("batch", 32, "Pictures per step.")
    flags.DEFINE_enum("optimiser", "muon", list(OPTIMISERS), "The optimiser.")
    flags.DEFINE_float("learning_rate", 0.005, "Peak rate of the kernels.")
    flags.DEFINE_float("ema", 0.99, "Decay of the averaged parameters.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
