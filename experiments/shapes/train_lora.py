"""A LoRA that teaches the shapes model an outline it never saw, from twenty pictures; some minutes on 2 cores.

    python -m experiments.shapes.train_lora --name=hexagon --out=runs/hexagon

Writes the adapter as `<out>/<name>.safetensors`, in kohya's dialect, float16. Started again on the same folder it goes
on where it was. What it learns from: `lessons`. The loss is the sum of two means (Ruiz et al. 2022), over pictures of
the new thing and over those of old captions,

    mean |v - v_true|^2  +  prior * mean |v - v_base|^2                                                         (1)

with the weights of `train_unet`; v_base is what the model without the adapter answers to the same noise, so that the
second mean is 0 where nothing is forgotten. "hexagon" is no word of the tokenizer: it comes in letters, which the text
encoder never read, so that the adapter has factors in its layers too.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import _cli
from experiments.shapes import lessons, models, train_pictures
from experiments.shapes.train_unet import GAMMA, alphas_cumprod, noised, time_weight
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.conditioning import Conditions
from sdjax.nn.unet import UNet
from sdjax.train import low_rank
from sdjax.train.loop import fit
from sdjax.train.state import TrainState, WarmupStableDecay, make_optimiser, make_step
from sdjax.weights.write import Draft, write_file, write_tensors

FLAGS = flags.FLAGS

Factors = Mapping[str, low_rank.Factors]  # by component


def velocity(
    networks: tuple[UNet, ClipTextEncoder], params: Mapping[str, Any], x: jax.Array, t: jax.Array, ids: jax.Array
) -> jax.Array:
    """What a model answers at x `b h w c`, times `b` and ids `b l`: `b h w c`."""
    unet, text = networks
    context = text.apply({"params": params["text_encoder"]}, ids).last_hidden_state
    return unet.apply({"params": params["unet"]}, x, t.astype(jnp.float32), Conditions(context))


def loss(
    networks: tuple[UNet, ClipTextEncoder],
    alpha_bar: jax.Array,
    scale: float,
    prior: float,
    factors: Factors,
    batch: dict[str, dict[str, jax.Array]],
    key: jax.Array,
    base: dict[str, Any],
) -> jax.Array:
    """Equation 1. factors, base: by component. batch: "new" and "old", each "latents", "ids" and "weights"."""
    own = {name: low_rank.worn(params, factors[name], scale) for name, params in base.items()}
    new, old = batch["new"], batch["old"]
    (x, t, wanted), (x_old, t_old, _) = (
        noised(alpha_bar, part["latents"], k) for part, k in zip((new, old), jax.random.split(key), strict=True)
    )
    wanted = jnp.concatenate([wanted, velocity(networks, base, x_old, t_old, old["ids"])])
    x, t = jnp.concatenate([x, x_old]), jnp.concatenate([t, t_old])
    ids, weights = (jnp.concatenate([new[name], old[name]]) for name in ("ids", "weights"))
    square = jnp.square(velocity(networks, own, x, t, ids) - wanted) * weights
    each = jnp.mean(square, axis=(1, 2, 3)) * time_weight(alpha_bar[t], GAMMA)
    count = len(new["ids"])
    return jnp.mean(each[:count]) + prior * jnp.mean(each[count:])


def fresh_factors(base: Mapping[str, Any], layers: Mapping[str, str], rank: int, seed: int) -> Factors:
    """The factors before training of all layers whose path holds their component's pattern; "" is none."""
    return {
        name: low_rank.fresh_factors(base[name], lambda at, own=own: bool(re.search(own, at)), rank, seed + i)
        if own
        else {}
        for i, (name, own) in enumerate(layers.items())
    }


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
        "ss_training_comment": "experiments/shapes/train_lora.py: 20 pictures drawn by experiments/shapes/world.py",
        "sdjax.words": json.dumps([name]),
    }


def main() -> None:
    out, tokenizer = Path(FLAGS.out), train_pictures.tokenizer()
    config, text_params = train_pictures.text_encoder()
    base = {"unet": train_pictures.shipped_unet(), "text_encoder": text_params}
    factors = fresh_factors(base, {"unet": FLAGS.unet_layers, "text_encoder": FLAGS.text_layers}, FLAGS.rank, FLAGS.seed)
    print("numbers to learn:", {name: sum(p.size for p in jax.tree.leaves(own)) for name, own in factors.items()})
    told = {"new": lessons.new_pictures(FLAGS.name), "old": lessons.old_pictures()}
    pools = {kind: (latents, tokenizer.tokens(captions)) for kind, (latents, captions) in told.items()}
    networks, optimiser = (UNet(models.UNET), ClipTextEncoder(config)), make_optimiser("adamw")
    objective = partial(loss, networks, alphas_cumprod(), FLAGS.alpha / FLAGS.rank, FLAGS.prior)
    names = ("name", "rank", "alpha", "new", "old", "learning_rate", "prior", "steps", "unet_layers", "text_layers")
    state = fit(
        out,
        TrainState.create(factors, optimiser),
        make_step(objective, optimiser, FLAGS.ema, base),
        lessons.Lessons(pools, (FLAGS.new, FLAGS.old), FLAGS.seed).batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, FLAGS.steps // 2, warmup=20),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in (*names, "ema", "seed")},
        every=25,
        report=partial(print, flush=True),
    )
    tensors = {n: Draft.of(a) for n, a in low_rank.tensors(jax.device_get(state.average), FLAGS.alpha).items()}
    write_file(out / f"{FLAGS.name}.safetensors", lambda path: write_tensors(tensors, metadata(FLAGS.name), path))


if __name__ == "__main__":
    flags.DEFINE_string("name", "hexagon", "The outline.")
    flags.DEFINE_string("out", "runs/hexagon", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("rank", 8, "Of every factor.", lower_bound=1)
    flags.DEFINE_float("alpha", 8, "The factors' product counts alpha / rank.")
    flags.DEFINE_string("unet_layers", r"attn[12]\.", "Layers of the U-Net whose path holds this pattern.")
    flags.DEFINE_string("text_layers", r".", "Layers of the text encoder, likewise.")
    flags.DEFINE_integer("steps", 600, "Optimiser steps; over the last half the rate falls to zero.")
    flags.DEFINE_integer("new", 16, "Pictures of the new thing per step.", lower_bound=1)
    flags.DEFINE_integer("old", 16, "Pictures of old captions per step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 2e-3, "Peak rate.")
    flags.DEFINE_float("prior", 1.0, "Weight of the old captions.")
    flags.DEFINE_float("ema", 0.98, "Decay of the averaged factors.")
    flags.DEFINE_integer("seed", 0, "Seed of the factors, the batches and the noise.")
    _cli.run(main)
