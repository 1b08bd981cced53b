"""A LoRA that teaches the shapes model an outline it never saw, from twenty pictures; some minutes on 2 cores.

    python -m experiments.shapes.train_lora --name=hexagon --out=runs/hexagon
    python -m experiments.shapes.train_lora --out=runs/hexagon2 --start=runs/hexagon/hexagon.safetensors --prior=5 \\
        --steps=140 --learning_rate=1e-3 --seed=1

Writes the adapter as `<out>/<name>.safetensors`, in kohya's dialect, float16. Started again on the same folder it goes
on where it was. As the model itself was trained, the factors of the text encoder come first, from captions alone
(`new_word`), then those of the U-Net, from the pictures of `lessons`. Their loss is the sum of two means (Ruiz et al.
2022), over pictures of the new thing and over those of old captions,

    mean |v - v_true|^2  +  prior * mean |v - v_base|^2                                                         (1)

with the weights of `train_unet`; v_base is what the model without the adapter answers to the same noise, so that the
second mean is 0 where nothing is forgotten. The second command goes on from what the first wrote, with more weight on
what was known before.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from safetensors.numpy import load_file

from experiments import _cli
from experiments.shapes import lessons, models, new_word, train_pictures
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import GAMMA, alphas_cumprod, noised, time_weight
from sdjax.config import ClipTextConfig
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train import low_rank
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_plain_step
from sdjax.weights.write import Draft, write_file, write_tensors

FLAGS = flags.FLAGS

LAYERS = r"attn2|up_blocks\.1.*net\.2|up_blocks\.2.*conv[12]"
"""What fits into 300 KB beside the text encoder: where the text comes in, and the last blocks, which draw outlines."""
Factors = Mapping[str, low_rank.Factors]  # by component


def loss(
    unet: UNet,
    alpha_bar: jax.Array,
    scale: float,
    factors: low_rank.Factors,
    batch: dict[str, dict[str, jax.Array]],
    key: jax.Array,
    base: dict[str, Any],
) -> jax.Array:
    """Equation 1, of the U-Net's factors beside its parameters `base`.

    batch: "new" and "old", each "latents", "weights", which for "old" have the prior in them, and "context", which the
    text encoder with its factors makes; of "old" also "base_context", which it makes without.
    """

    def velocity(params: dict[str, Any], x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, x, t.astype(jnp.float32), Conditions(context.astype(jnp.float32)))

    new, old = batch["new"], batch["old"]
    (x, t, wanted), (x_old, t_old, _) = (
        noised(alpha_bar, part["latents"], k) for part, k in zip((new, old), jax.random.split(key), strict=True)
    )
    wanted = jnp.concatenate([wanted, velocity(base, x_old, t_old, old["base_context"])])
    x, t = jnp.concatenate([x, x_old]), jnp.concatenate([t, t_old])
    context, weights = (jnp.concatenate([new[name], old[name]]) for name in ("context", "weights"))
    square = jnp.square(velocity(low_rank.worn(base, factors, scale), x, t, context) - wanted) * weights
    each = jnp.mean(square, axis=(1, 2, 3)) * time_weight(alpha_bar[t], GAMMA)
    count = len(new["latents"])
    return jnp.mean(each[:count]) + jnp.mean(each[count:])


def fresh_factors(base: Mapping[str, Any], layers: Mapping[str, str], rank: int, seed: int) -> Factors:
    """The factors before training of all layers whose path holds their component's pattern."""
    chosen = {name: re.compile(own).search for name, own in layers.items()}
    return {name: low_rank.fresh_factors(base[name], chosen[name], rank, seed) for name in layers}


def metadata(name: str) -> dict[str, str]:
    """What the file says of itself, in kohya's words and, of what it has none for, in ours."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(FLAGS.rank),
        "ss_network_alpha": f"{FLAGS.alpha:g}",
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


def train_text(config: ClipTextConfig, base: dict[str, Any], factors: low_rank.Factors) -> low_rank.Factors:
    """The text encoder's factors, trained."""
    encoder, tokenizer = ClipTextEncoder(config), train_pictures.tokenizer()
    captions = new_word.Captions(FLAGS.name, tokenizer, encoder_of(config, base), FLAGS.captions, FLAGS.seed)
    objective = partial(new_word.loss, encoder, FLAGS.alpha / FLAGS.rank)
    step = make_plain_step(objective, OPTIMISERS["adamw"], [Decay(FLAGS.ema)], base)
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


def train_unet(
    base: dict[str, Any], factors: low_rank.Factors, pools: Mapping[str, Mapping[str, np.ndarray]]
) -> low_rank.Factors:
    """The U-Net's factors, trained on what `loss` takes."""
    objective = partial(loss, UNet(models.UNET), alphas_cumprod(), FLAGS.alpha / FLAGS.rank)
    names = ("name", "rank", "alpha", "new", "old", "learning_rate", "prior", "steps", "unet_layers", "ema", "start")
    step = make_plain_step(objective, OPTIMISERS["adamw"], [Decay(FLAGS.ema)], base)
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


def encoder_of(config: ClipTextConfig, params: dict[str, Any]) -> lessons.Encode:
    """The text encoder with these parameters."""
    encoder = ClipTextEncoder(config)
    apply = jax.jit(lambda params, ids: encoder.apply({"params": params}, ids).last_hidden_state)
    return lambda ids: apply(params, ids)


def settings(*names: str) -> dict[str, Any]:
    """Flags by name."""
    return {name: FLAGS[name].value for name in names}


def main() -> None:
    tokenizer, (config, text) = train_pictures.tokenizer(), train_pictures.text_encoder()
    base = {"unet": train_pictures.shipped_unet(), "text_encoder": text}
    factors: Mapping[str, Any]
    if FLAGS.start:
        factors, scale = low_rank.untensors(load_file(FLAGS.start), base)
        if scale != FLAGS.alpha / FLAGS.rank:
            raise ValueError(
                f"--start={FLAGS.start} counts {scale:g}; --alpha / --rank is {FLAGS.alpha / FLAGS.rank:g}"
            )
        trained = {"text_encoder": factors["text_encoder"]}
    else:
        layers = {"unet": FLAGS.unet_layers, "text_encoder": FLAGS.text_layers}
        factors = fresh_factors(base, layers, FLAGS.rank, FLAGS.seed)
        trained = {"text_encoder": train_text(config, text, factors["text_encoder"])}
    print("numbers to learn:", {name: sum(p.size for p in jax.tree.leaves(own)) for name, own in factors.items()})
    worn = low_rank.worn(text, trained["text_encoder"], FLAGS.alpha / FLAGS.rank)
    encoders = {"context": encoder_of(config, worn), "base_context": encoder_of(config, text)}
    pools = {}
    for kind, (latents, captions) in (("new", lessons.new_pictures(FLAGS.name)), ("old", lessons.old_pictures())):
        ids = tokenizer.tokens(captions)
        pools[kind] = {"latents": latents} | {name: np.asarray(encode(ids)) for name, encode in encoders.items()}
    trained["unet"] = train_unet(base["unet"], factors["unet"], pools)
    tensors = {name: Draft.of(array) for name, array in low_rank.tensors(trained, FLAGS.alpha).items()}
    path = Path(FLAGS.out) / f"{FLAGS.name}.safetensors"
    write_file(path, partial(write_tensors, tensors, metadata(FLAGS.name)))
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
