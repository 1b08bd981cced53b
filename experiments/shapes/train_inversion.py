"""A textual inversion: vectors that stand in a caption for a colour which the shapes model has no word for.

    python -m experiments.shapes.train_inversion --name=lime --out=runs/lime

Writes them as `<out>/<name>.safetensors`, one tensor "<lime>" of [vectors, width], float32. Both networks stay as they
are (Gal et al. 2022, arXiv:2208.01618): the gradient goes through the U-Net and the text encoder into the vectors. They
stand behind the encoder's own table of vectors while they are trained, as rows of ids that no text has, and begin as
means of words' vectors (--start).

What can be said so is what the U-Net can draw already. Between yellow and green it draws a colour of its own, lime;
between blue and green, where teal would be, patches of the one and of the other, and an inversion of teal (20, 120,
140), 200 steps at a rate of 0.01 from "cyan+blue", had the colour right in 6 of 40 pictures.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import lessons, models, train_pictures
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import alphas_cumprod, velocity_loss
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.unet import UNet
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_plain_step
from sdjax.weights.write import Draft, write_file, write_tensors

FLAGS = flags.FLAGS


def extended(params: dict, vectors: jax.Array) -> dict:
    """A text encoder's parameters with vectors `n d` behind its table."""
    model = params["text_model"]
    embeddings = model["embeddings"]
    table = jnp.concatenate([embeddings["token_embedding"]["embedding"], vectors])
    return {**params, "text_model": {**model, "embeddings": {**embeddings, "token_embedding": {"embedding": table}}}}


def loss(
    unet: UNet, text: ClipTextEncoder, alpha_bar: jax.Array, vectors: Any, batch: dict, key: jax.Array, base: dict
) -> jax.Array:
    """`train_unet.velocity_loss` of the vectors {"vectors": `n d`}; batch: {"new": "latents", "ids" and "weights"}."""
    own, new = extended(base["text_encoder"], vectors["vectors"]), batch["new"]
    context = text.apply({"params": own}, new["ids"]).last_hidden_state
    return velocity_loss(unet, alpha_bar, base["unet"], {**new, "context": context}, key)


def ids_of(captions: list[str], word: str, vectors: int, vocab_size: int) -> np.ndarray:
    """Rows of ids int32 `n l`, in which `word` is the ids from `vocab_size` on, as many as there are vectors."""
    tokenizer = train_pictures.tokenizer()
    rows = np.full((len(captions), tokenizer.max_length), tokenizer.pad, np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = [tokenizer.bos]
        for piece in caption.split():
            ids += range(vocab_size, vocab_size + vectors) if piece == word else tokenizer.pieces(piece)
        row[: len(ids) + 1] = [*ids, tokenizer.eos]
    return rows


def metadata(name: str) -> dict[str, str]:
    """What the file says of itself."""
    return {
        "ss_output_name": name,
        "ss_sd_model_name": "sdjax/assets/shapes",
        "ss_steps": str(FLAGS.steps),
        "ss_num_train_images": str(lessons.PICTURES),
        "ss_seed": str(FLAGS.seed),
        "ss_training_comment": f"sdjax, experiments/shapes/train_inversion.py: from {'+'.join(FLAGS.start)}, with 20 "
        "pictures that the renderer of experiments/shapes/world.py drew",
    }


def main() -> None:
    out, tokenizer = Path(FLAGS.out), train_pictures.tokenizer()
    config, text_params = train_pictures.text_encoder()
    base = {"unet": train_pictures.shipped_unet(), "text_encoder": text_params}
    table = text_params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    start = np.stack([table[[tokenizer.pieces(word)[0] for word in one.split("+")]].mean(0) for one in FLAGS.start])
    latents, captions = lessons.new_pictures(FLAGS.name)
    ids = ids_of(captions, FLAGS.name, len(start), config.vocab_size)
    text = ClipTextEncoder(replace(config, vocab_size=config.vocab_size + len(start)))
    objective = partial(loss, UNet(models.UNET), text, alphas_cumprod())
    step = make_plain_step(objective, OPTIMISERS["adamw"], [Decay(FLAGS.ema)], base)
    names = ("name", "start", "batch", "learning_rate", "steps", "seed")
    state = fit(
        out,
        step.begin({"vectors": start}),
        step,
        lessons.Lessons({"new": {"latents": latents, "ids": ids}}, [FLAGS.batch], FLAGS.seed).batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, FLAGS.steps // 2, warmup=20),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names},
        every=20,
        report=partial(print, flush=True),
    )
    tensors = {f"<{FLAGS.name}>": Draft.of(step.evaluated(state)["vectors"])}
    write_file(out / f"{FLAGS.name}.safetensors", partial(write_tensors, tensors, metadata(FLAGS.name)))


if __name__ == "__main__":
    flags.DEFINE_string("name", "lime", "The colour.")
    flags.DEFINE_string("out", "runs/lime", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_list("start", ["yellow+green"], "For each vector the words whose mean it begins as.")
    flags.DEFINE_integer("steps", 120, "Optimiser steps; over the last half the rate falls to zero.")
    flags.DEFINE_integer("batch", 12, "Pictures per step.")
    flags.DEFINE_float("learning_rate", 5e-3, "Peak rate.")
    flags.DEFINE_float("ema", 0.95, "Decay of the averaged vectors.")
    flags.DEFINE_integer("seed", 0, "Seed of the batches and the noise.")
    _cli.run(main)
