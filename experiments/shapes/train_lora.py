"""A LoRA that teaches the shapes model an outline it never saw, from twenty pictures; some minutes on 2 cores.

    python -m experiments.shapes.train_lora --name=hexagon --out=runs/hexagon
    python -m experiments.shapes.train_lora --out=runs/hexagon2 --start=runs/hexagon/hexagon.safetensors --prior=5 \\
        --steps=140 --learning_rate=1e-3 --seed=1

Writes the adapter as `<out>/<name>.safetensors`, in kohya's dialect, float16. Started again on the same folder it goes
on where it was. As the model itself was trained, the factors of the text encoder come first, from captions alone
(`new_word`), then those of the U-Net, from the pictures of `lessons`. Their loss is the sum of two means (Ruiz et al.
2022), over pictures of the new thing and over those of old captions,

    mean |v - v_true|^2  +  prior * mean |v - v_base|^2                                                         (1)

with the weights of `train_unet`; v_base is what the model without the adapter answers to the same noise
(`sdjax.train.losses.preserving`), so that the second mean is 0 where nothing is forgotten. The second command goes on
from what the first wrote, with more weight on what was known before.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags
from safetensors.numpy import load_file

from experiments import _cli
from experiments.shapes import lessons, models, new_word, train_pictures
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_text import Saying, encoder_of
from experiments.shapes.train_unet import WEIGHTING
from sdjax.core.keys import key
from sdjax.core.tree import Params
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.losses.preserving import Preserving
from sdjax.train.methods import low_rank
from sdjax.train.methods.lora import LoRA
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_step

FLAGS = flags.FLAGS

LAYERS = r"attn2|up_blocks\.1.*net\.2|up_blocks\.2.*conv[12]"
"""What fits into 300 KB beside the text encoder: where the text comes in, and the last blocks, which draw outlines."""


def lora(**layers: str) -> LoRA:
    """The method of these flags; layers: of components, by a pattern each."""
    return LoRA(FLAGS.rank, FLAGS.alpha, tuple(layers.items()), dtype="float16")


def metadata(name: str) -> dict[str, str]:
    """What the file says of itself, in kohya's words and, of what it has none for, in ours."""
    return {
        "ss_output_name": name,
        "ss_base_model_version": "sdjax shapes",
        "ss_sd_model_name": "sdjax/assets/shapes",
        "ss_steps": str(FLAGS.steps),
        "ss_learning_rate": f"{FLAGS.learning_rate:g}",
        "ss_prior_loss_weight": f"{FLAGS.prior:g}",
        "ss_num_train_images": str(lessons.PICTURES),
        "ss_num_reg_images": str(lessons.OLD),
        "ss_seed": str(FLAGS.seed),
        "ss_training_comment": "sdjax, experiments/shapes/train_lora.py: the U-Net's factors from 20 pictures that the "
        "renderer of experiments/shapes/world.py drew, the text encoder's from captions alone; old captions by the "
        "base's own answers",
        "sdjax.words": json.dumps([name]),
        "sdjax.start": FLAGS.start or "",
    }


def train_text(params: Params) -> Params:
    """What is trained of the text encoder, by component."""
    tower, method = models.architecture().texts[0], lora(text_encoder=FLAGS.text_layers)
    encode = encoder_of(tower.config, params["text_encoder"])
    captions = new_word.Captions(FLAGS.name, models.tokenizer(), encode, FLAGS.captions, FLAGS.seed)
    factors = method.start(params, key(FLAGS.seed))
    step = make_step(Saying(tower), method, factors, params, OPTIMISERS["adamw"], [Decay(FLAGS.ema)])
    state = fit(
        Path(FLAGS.out) / "text",
        step.begin(factors),
        step,
        captions.batch,
        WarmupStableDecay(FLAGS.text_rate, FLAGS.text_steps, FLAGS.text_steps // 2, warmup=20),
        steps=FLAGS.text_steps,
        seed=FLAGS.seed,
        settings=settings("name", "rank", "alpha", "captions", "text_rate", "text_steps", "text_layers", "ema", "seed"),
        report=partial(print, flush=True),
    )
    return step.evaluated(state)


def train_unet(params: Params, factors: Params, pools: Mapping[str, Mapping[str, Any]]) -> Params:
    """What is trained of the U-Net, by component, beside parameters in which the text encoder has its factors."""
    objective = Preserving(models.architecture(), weighting=WEIGHTING)
    names = ("name", "rank", "alpha", "new", "old", "learning_rate", "prior", "steps", "unet_layers", "ema", "start")
    step = make_step(objective, lora(), factors, params, OPTIMISERS["adamw"], [Decay(FLAGS.ema)])
    fall, warmup = (FLAGS.steps, 5) if FLAGS.start else (FLAGS.steps // 2, 20)
    state = fit(
        Path(FLAGS.out) / "unet",
        step.begin(factors),
        step,
        lessons.Lessons(pools, (FLAGS.new, FLAGS.old), FLAGS.seed, FLAGS.prior).batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall, warmup),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings=settings(*names, "seed"),
        every=20,
        report=partial(print, flush=True),
    )
    return step.evaluated(state)


def begun(base: Params) -> tuple[Params, Params]:
    """What is trained of the text encoder, and the U-Net's factors before their first step; both by component."""
    if not FLAGS.start:
        return train_text(base), lora(unet=FLAGS.unet_layers).start(base, key(FLAGS.seed))
    factors, scale = low_rank.untensors(load_file(FLAGS.start), base)
    if scale != FLAGS.alpha / FLAGS.rank:
        raise ValueError(f"--start={FLAGS.start} counts {scale:g}; --alpha / --rank is {FLAGS.alpha / FLAGS.rank:g}")
    return {"text_encoder": factors["text_encoder"]}, {"unet": factors["unet"]}


def settings(*names: str) -> dict[str, Any]:
    """Flags by name."""
    return {name: FLAGS[name].value for name in names}


def main() -> None:
    out, tokenizer = Path(FLAGS.out), models.tokenizer()
    base: Params = {"unet": train_pictures.shipped_unet(), "text_encoder": train_pictures.text_encoder()[1]}
    text, factors = begun(base)
    sizes = {name: sum(p.size for p in jax.tree.leaves(own)) for name, own in (text | factors).items()}
    print("numbers to learn:", sizes, flush=True)
    pools = {}
    for kind, (latents, captions) in (("new", lessons.new_pictures(FLAGS.name)), ("old", lessons.old_pictures())):
        pools[kind] = {"latents": latents, "ids": {"text_encoder": tokenizer.tokens(captions)}}
    worn = {**lora().join(text, base), "reference": base}
    trained = text | train_unet(worn, factors, pools)
    path = lora().write(trained, base, out, metadata(FLAGS.name)).replace(out / f"{FLAGS.name}.safetensors")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    flags.DEFINE_string("name", "hexagon", "The outline.")
    flags.DEFINE_string("out", "runs/hexagon", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_string("start", None, "An adapter whose U-Net's factors are trained on, the text encoder's kept.")
    flags.DEFINE_integer("rank", 8, "Of every factor.", lower_bound=1)
    flags.DEFINE_float("alpha", 8, "The factors' product counts alpha / rank.")
    flags.DEFINE_string("unet_layers", LAYERS, "Layers of the U-Net whose path holds this pattern.")
    flags.DEFINE_string("text_layers", r".", "Layers of the text encoder, likewise.")
    flags.DEFINE_integer("text_steps", 300, "Optimiser steps of the text encoder's factors.")
    flags.DEFINE_integer("captions", 64, "Captions per step, half of them old.", lower_bound=2)
    flags.DEFINE_float("text_rate", 5e-3, "Peak rate of the text encoder's factors.")
    flags.DEFINE_integer("steps", 300, "Optimiser steps; over the last half the rate falls to zero.")
    flags.DEFINE_integer("new", 10, "Pictures of the new thing per step.", lower_bound=1)
    flags.DEFINE_integer("old", 6, "Pictures of old captions per step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 2e-3, "Peak rate.")
    flags.DEFINE_float("prior", 1.0, "Weight of the old captions.")
    flags.DEFINE_float("ema", 0.98, "Decay of the averaged factors.")
    flags.DEFINE_integer("seed", 0, "Seed of the factors, the batches and the noise.")
    _cli.run(main)
