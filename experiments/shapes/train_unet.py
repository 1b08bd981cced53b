"""Stage 3 of the shapes model: the text encoder and the U-Net, together and from scratch.

    python -m experiments.shapes.train_unet --latents=runs/latents --out=runs/unet

v-prediction (Salimans & Ho 2022) under min-SNR weighting (Hang et al. 2023, gamma 5), timesteps stratified over the
batch, one caption in ten empty so that guidance works. Pictures of one object first, of two mixed in later: outlines
are learnt fastest where they are largest.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models
from sdjax.diffusion.noise import Settings, noise_schedule
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.unet import UNet
from sdjax.text.tokens import Tokenizer
from sdjax.train.loop import fit
from sdjax.train.state import TrainState, make_optimiser, make_step

FLAGS = flags.FLAGS

EMPTY = 0.1  # part of the captions replaced by ""
GAMMA = 5.0  # min-SNR


def init_params(vocab_size: int, seed: int) -> dict:
    """Fresh parameters {"text_encoder", "unet"}."""
    text_key, unet_key = jax.random.split(jax.random.key(seed))
    ids = jnp.zeros((1, models.MAX_LENGTH), jnp.int32)
    context = jnp.zeros((1, models.MAX_LENGTH, models.TEXT_WIDTH))
    size = models.PIXELS // 8
    text = jax.jit(ClipTextEncoder(models.text_config(vocab_size)).init)(text_key, ids)
    unet = jax.jit(UNet(models.UNET).init)(unet_key, jnp.zeros((1, size, size, 4)), jnp.zeros((1,)), context)
    return {"text_encoder": text["params"], "unet": unet["params"]}


def loss(
    encoder: ClipTextEncoder, unet: UNet, alpha_bar: jax.Array, params: dict, batch: dict, key: jax.Array
) -> jax.Array:
    """`velocity_loss` of text encoder and U-Net together; batch: "latents" `b h w c`, "ids" `b l`."""
    context = encoder.apply({"params": params["text_encoder"]}, batch["ids"]).last_hidden_state
    return velocity_loss(unet, alpha_bar, params["unet"], batch | {"context": context}, key)


def velocity_loss(unet: UNet, alpha_bar: jax.Array, params: dict, batch: dict, key: jax.Array) -> jax.Array:
    """Weighted mean squared error of the velocity.

    batch: "latents" `b h w c`, "context" `b l d`, and where there are any, "channels" `b h w k`, which stand beside
    the noisy latents, and "weights" `b h w 1`, of mean 1 in each picture, which say where the error counts.
    """
    x_0 = batch["latents"].astype(jnp.float32)
    b = x_0.shape[0]
    t_key, noise_key = jax.random.split(key)
    t = ((jnp.arange(b) + jax.random.uniform(t_key, (b,))) / b * len(alpha_bar)).astype(jnp.int32)
    alpha, sigma = jnp.sqrt(alpha_bar[t])[:, None, None, None], jnp.sqrt(1 - alpha_bar[t])[:, None, None, None]
    noise = jax.random.normal(noise_key, x_0.shape)
    x = alpha * x_0 + sigma * noise
    if "channels" in batch:
        x = jnp.concatenate([x, batch["channels"].astype(jnp.float32)], axis=-1)
    v = unet.apply({"params": params}, x, t.astype(jnp.float32), batch["context"].astype(jnp.float32))
    square = jnp.square(v - (alpha * noise - sigma * x_0)) * batch.get("weights", 1.0)
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    return jnp.mean(jnp.mean(square, axis=(1, 2, 3)) * jnp.minimum(snr, GAMMA) / (snr + 1))


def alphas_cumprod() -> jax.Array:
    """The world's noise schedule: alpha_bar float32 [1000]."""
    betas = {name: models.SCHEDULER_JSON[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    return jnp.asarray(noise_schedule(Settings(**betas)).alphas_cumprod, jnp.float32)


class Pictures:
    """The encoded pictures in memory, and the batch of any step."""

    def __init__(self, folder: Path, empty_ids: np.ndarray, *, batch: int, steps: int, seed: int) -> None:
        self.pools = [np.load(folder / f"things{n}.npz") for n in (1, 2)]
        self.pools = [{"latents": pool["latents"], "ids": pool["ids"]} for pool in self.pools]
        self.empty_ids, self.size, self.steps, self.seed = empty_ids, batch, steps, seed

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch: all of one object for the first 15 % of the steps, half and half from 50 % on."""
        rng = np.random.default_rng([self.seed, n])
        double = 0.5 * np.clip((n / self.steps - 0.15) / 0.35, 0, 1)
        second = rng.binomial(self.size, double)
        picked = [
            self._pick(rng, pool, count) for pool, count in zip(self.pools, (self.size - second, second), strict=True)
        ]
        joined = {name: np.concatenate([part[name] for part in picked]) for name in ("latents", "ids")}
        order = rng.permutation(self.size)  # timesteps are stratified by place, so a place must not tell the kind
        ids = joined["ids"][order]
        ids[rng.random(self.size) < EMPTY] = self.empty_ids
        return {"latents": joined["latents"][order], "ids": ids}

    def _pick(self, rng: np.random.Generator, pool: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        chosen = rng.integers(len(pool["ids"]), size=count)
        return {name: values[chosen] for name, values in pool.items()}


def main() -> None:
    folder = Path(FLAGS.latents)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    params = init_params(tokenizer.size, FLAGS.seed)
    print("parameters:", {name: sum(p.size for p in jax.tree.leaves(tree)) for name, tree in params.items()})
    optimiser = make_optimiser(FLAGS.optimiser, FLAGS.learning_rate, FLAGS.steps, decay_part=0.35)
    encoder = ClipTextEncoder(models.text_config(tokenizer.size))
    objective = partial(loss, encoder, UNet(models.UNET), alphas_cumprod())
    pictures = Pictures(folder, tokenizer.tokens([""])[0], batch=FLAGS.batch, steps=FLAGS.steps, seed=FLAGS.seed)
    settings = {name: FLAGS[name].value for name in ("steps", "batch", "optimiser", "learning_rate", "ema", "seed")}
    fit(
        FLAGS.out,
        TrainState.create(params, optimiser),
        make_step(objective, optimiser, FLAGS.ema),
        pictures.batch,
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings=settings,
    )


if __name__ == "__main__":
    flags.DEFINE_string("latents", "runs/latents", "Folder that stage 2 wrote.")
    flags.DEFINE_string("out", "runs/unet", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("steps", 2000, "Optimiser steps.")
    flags.DEFINE_integer("batch", 64, "Pictures per step.")
    flags.DEFINE_string("optimiser", "muon", "adamw or muon.")
    flags.DEFINE_float("learning_rate", 0.01, "Peak rate of the kernels.")
    flags.DEFINE_float("ema", 0.998, "Decay of the averaged parameters.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
