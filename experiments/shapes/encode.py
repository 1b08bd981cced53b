"""Stage 2 of the shapes model: even latents, and the pictures encoded once for the U-Net's training.

    python -m experiments.shapes.encode --vae=runs/vae --out=runs/latents

Without --vae the shipped autoencoder, which is even, encodes as it is. The pictures are written in files of SHARD each,
under a temporary name first; started again, it goes on with the first file that is missing.

A diffusion model adds the same noise to every channel, so channels of spread 0.3 and 1.6 would be learnt at different
noise levels. Each channel is shifted and scaled to mean 0, spread 1; the shift and the scale are folded into the
VAE's own 1 x 1 convolutions, so the shipped file is a plain AutoencoderKL with scaling_factor 1:

    quant_conv:       mean' = (mean - m) / s,   logvar' = logvar - 2 log s
    post_quant_conv:  z = s z' + m

Also prints how many of the VAE's reconstructions the scorer accepts: the ceiling of everything that follows.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import models, workers, world
from experiments.shapes.batches import write_arrays
from experiments.shapes.score import score, wilson
from sdjax.images.pixels import from_uint8, to_uint8
from sdjax.nn.vae import Autoencoder
from sdjax.text import grammar
from sdjax.text.tokens import Tokenizer, write_word_tokenizer
from sdjax.train.loop import averaged
from sdjax.train.state import fresh
from sdjax.weights.save import default_layout, save_component

FLAGS = flags.FLAGS

SEED = 70  # of the pictures encoded here; the VAE's own were drawn from another
SHARD, TOGETHER = 2000, 100  # pictures in a file, pictures drawn and encoded at once

Encode = Callable[[np.ndarray], jax.Array]  # pixels `b H W 3` in [-1, 1] to latents `b h w c`


def trained_params(folder: str) -> dict:
    """The averaged parameters of a VAE run."""
    params = fresh(Autoencoder(models.VAE), 0, jnp.zeros((1, 64, 64, 3)))
    return averaged(folder, {"vae": params})["vae"]


def encoder(params: dict) -> Encode:
    """The mean latents that a VAE's parameters give."""
    model = Autoencoder(models.VAE)
    apply = jax.jit(lambda params, x: model.apply({"params": params}, x, method="encode").mean)
    return lambda x: apply(params, x)


def fold(params: dict, mean: np.ndarray, spread: np.ndarray) -> dict:
    """The parameters of the VAE whose latents are (z - mean) / spread, channel by channel."""
    quant, post = params["quant_conv"], params["post_quant_conv"]
    c = len(mean)
    scale = np.concatenate([1 / spread, np.ones(c)])
    offset = np.concatenate([-mean / spread, -2 * np.log(spread)])
    kernel = post["kernel"] * spread[None, None, :, None]
    return params | {
        "quant_conv": {"kernel": quant["kernel"] * scale, "bias": quant["bias"] * scale + offset},
        "post_quant_conv": {"kernel": kernel, "bias": post["bias"] + mean @ post["kernel"][0, 0]},
    }


Drawn = list[Future[tuple[np.ndarray, list[str]]]]


def drawn(pool: ProcessPoolExecutor, shards: list[tuple[Path, int, int]]) -> Iterator[tuple[Path, Drawn]]:
    """Each (path, things, start) with its pictures, which other processes draw two files ahead of what is asked for."""
    ahead: list[tuple[Path, Drawn]] = []
    for path, things, start in shards:
        firsts = range(start, start + SHARD, TOGETHER)
        ahead.append((path, [pool.submit(world.dataset, SEED, first, TOGETHER, "seen", things) for first in firsts]))
        if len(ahead) == 3:
            yield ahead.pop(0)
    yield from ahead


def write_shard(encode: Encode, tokenizer: Tokenizer, path: Path, pictures: Drawn) -> None:
    """Pictures as "latents" float16 [n, 16, 16, 4] and "ids" int32 [n, l]."""
    latents, captions = [], []
    for group in pictures:
        pixels, texts = group.result()
        latents.append(np.asarray(encode(from_uint8(pixels)), np.float16))
        captions += texts
    joined = np.concatenate(latents)
    write_arrays(path, {"latents": joined, "ids": tokenizer.tokens(captions)})
    print(f"{path}: spread {joined.astype(np.float32).std((0, 1, 2)).round(3)}", flush=True)


def reconstruction_score(autoencode: Callable[[np.ndarray], jax.Array], count: int) -> str:
    """The part of reconstructions that the scorer accepts, over unseen pictures and all kinds of captions."""
    right, missed = 0, []
    for start in range(0, count, 50):
        pictures, captions = world.dataset(SEED + 1, start, 50, "any")
        made = to_uint8(np.asarray(autoencode(from_uint8(pictures))))
        for picture, caption in zip(made, captions, strict=True):
            verdict = score(picture, caption)
            right += verdict.ok
            missed += [] if verdict.ok else [f"{caption} {verdict.errors}"]
    low, high = wilson(right, count)
    return f"{right}/{count} = {right / count:.1%} (95 %: {low:.1%} to {high:.1%})\n  " + "\n  ".join(missed[:8])


def evened(folder: str) -> dict:
    """The float16 parameters of the VAE of a run, folded."""
    params = trained_params(folder)
    encode = encoder(params)
    some = np.concatenate([np.asarray(encode(from_uint8(world.dataset(SEED, n, 64)[0]))) for n in range(0, 1024, 64)])
    mean, spread = some.mean((0, 1, 2)), some.std((0, 1, 2))
    print("channel means", mean.round(3), "spreads", spread.round(3))
    return jax.tree.map(lambda p: np.asarray(p, np.float16), fold(params, mean, spread))


def main() -> None:
    out, model = Path(FLAGS.out), Autoencoder(models.VAE)
    half = evened(FLAGS.vae) if FLAGS.vae else models.shipped("vae", models.VAE)
    save_component(out / "vae", half, default_layout(half, models.VAE_JSON))
    write_word_tokenizer(out / "tokenizer", world.VOCABULARY, models.MAX_LENGTH)
    (out / "tokenizer" / grammar.FILE).write_text(json.dumps(world.GRAMMAR, indent=2) + "\n", encoding="utf-8")

    params = jax.tree.map(lambda p: p.astype(np.float32), half)
    autoencode = jax.jit(lambda p, x: model.apply({"params": p}, x))
    print("reconstructions accepted:", reconstruction_score(lambda x: autoencode(params, x), FLAGS.score), flush=True)
    encode = encoder(params)
    tokenizer = Tokenizer.load(out / "tokenizer")
    counts = {1: FLAGS.single, 2: FLAGS.double}
    shards = [
        (out / f"things{things}_{start // SHARD:03}.npz", things, start)
        for start in range(0, max(counts.values()), SHARD)
        for things, count in counts.items()
        if start < count
    ]
    with workers.pool(FLAGS.single + FLAGS.double) as pool:
        for path, pictures in drawn(pool, [shard for shard in shards if not shard[0].exists()]):
            write_shard(encode, tokenizer, path, pictures)


if __name__ == "__main__":
    flags.DEFINE_string("vae", None, "Folder of the VAE's run; without it, the shipped autoencoder.")
    flags.DEFINE_string("out", "runs/latents", "Folder for the latents, the VAE and the tokenizer.")
    flags.DEFINE_integer("single", 32000, "Pictures of one object, in whole files.")
    flags.DEFINE_integer("double", 72000, "Pictures of two, in whole files.")
    flags.DEFINE_integer("score", 300, "Reconstructions to score.")
    _cli.run(main)
