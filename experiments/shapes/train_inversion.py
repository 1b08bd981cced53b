"""A textual inversion: vectors that stand in a caption for a colour which the shapes model has no word for.

    python -m experiments.shapes.train_inversion --name=lime --out=runs/lime

Writes them as `<out>/<name>.safetensors`, one tensor "<lime>" of [vectors, width], float32. Both networks stay as they
are (Gal et al. 2022, arXiv:2208.01618): the gradient goes through the U-Net and the text encoder into the vectors,
which begin as means of words' vectors (--start). The loss is the U-Net's own (`train_unet`).

What can be said so is what the U-Net can draw already. Between yellow and green it draws a colour of its own, lime;
between blue and green, where teal would be, patches of the one and of the other, and an inversion of teal (20, 120,
140), 200 steps at a rate of 0.01 from "cyan+blue", had the colour right in 6 of 40 pictures.
"""

from functools import partial
from pathlib import Path

from absl import flags

from experiments import _cli
from experiments.shapes import lessons, models, train_pictures
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import WEIGHTING
from sdjax.core.keys import key
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.losses.denoising import Denoising
from sdjax.train.methods.textual_inversion import TextualInversion
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_step

FLAGS = flags.FLAGS


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
    out, tokenizer, word = Path(FLAGS.out), models.tokenizer(), f"<{FLAGS.name}>"
    method = TextualInversion.of(word, [one.replace("+", " ") for one in FLAGS.start], tokenizer)
    params = {"unet": train_pictures.shipped_unet(), "text_encoder": train_pictures.text_encoder()[1]}
    latents, captions = lessons.new_pictures(FLAGS.name)
    rows = method.rows([caption.replace(FLAGS.name, word) for caption in captions], {"text_encoder": tokenizer})
    vectors = method.start(params, key(FLAGS.seed))
    objective = Denoising(models.architecture(), weighting=WEIGHTING)
    step = make_step(objective, method, vectors, params, OPTIMISERS["adamw"], [Decay(FLAGS.ema)])
    names = ("name", "start", "batch", "learning_rate", "steps", "seed")
    state = fit(
        out,
        step.begin(vectors),
        step,
        lessons.Lessons({"new": {"latents": latents, **rows}}, [FLAGS.batch], FLAGS.seed).batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, FLAGS.steps // 2, warmup=20),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names},
        every=20,
        report=partial(print, flush=True),
    )
    path = method.write(step.evaluated(state), params, out, metadata(FLAGS.name))
    path.replace(out / f"{FLAGS.name}.safetensors")


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
