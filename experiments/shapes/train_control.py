"""The nets that steer the shapes model by a map of edges or of depth, as Control-LoRAs; the U-Net stays as it is.

    python -m experiments.shapes.train_control --net=edges --data=runs/control_data --out=runs/edges
    python -m experiments.shapes.train_control --net=depth --data=runs/control_data --out=runs/depth_begun \\
        --start=runs/edges/edges --steps=300
    python -m experiments.shapes.train_control --net=depth --data=runs/control_data --out=runs/depth_net \\
        --start=runs/depth_begun/depth --steps=300 --overlapping=0.5

Writes the folder `<out>/<net>`, float16 (`control_lora`). Started again on the same folder it goes on where it was.

The loss is the U-Net's own (`train_unet`). What a map is worth is learnt from captions that do not tell everything:
EMPTY of them are left out. A map is looked at once for REPEAT noises, since its convolutions are at the picture's full
size. The depth net begins as the edge net: outlines are outlines. What only depth tells, which object is the nearer, is
in one picture of six, and of more in the third command.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from safetensors.numpy import load_file

from experiments import _cli
from experiments.shapes import control_lora, edges, encode_control, models, train_pictures
from experiments.shapes.batches import object_weights
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import GAMMA, alphas_cumprod, noised, time_weight
from sdjax.nn.conditioning import Conditions
from sdjax.nn.controlnet import HINT, ControlNet, HintEmbedding
from sdjax.nn.injections import Injections
from sdjax.nn.unet import UNet
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_plain_step

FLAGS = flags.FLAGS

NETS = ("edges", "depth")
EMPTY = 0.3
"""Part of the captions that are left out."""
REPEAT = 3
"""Noises for each map of a batch."""


def loss(
    alpha_bar: jax.Array, repeat: int, trained: Any, batch: dict[str, jax.Array], key: jax.Array, unet: Any
) -> jax.Array:
    """`train_unet.velocity_loss` of the U-Net with the net beside it.

    batch: "map" `b H W 3` in [0, 1], "latents" `b h w c`, "context" `b l d`, "weights" `b h w 1`, each used `repeat`
    times. unet: the U-Net's parameters.
    """
    params = control_lora.worn(unet, trained)
    hint = HintEmbedding(control_lora.CONFIG).apply({"params": params[HINT]}, batch["map"].astype(jnp.float32))
    hint, latents, weights = (
        jnp.tile(array, (repeat, 1, 1, 1)) for array in (hint, batch["latents"], batch["weights"])
    )
    conditions = Conditions(jnp.tile(batch["context"], (repeat, 1, 1)).astype(jnp.float32))
    x, t, wanted = noised(alpha_bar, latents, key)
    time = t.astype(jnp.float32)
    added = injected(params, x, time, conditions, hint)
    v = UNet(models.UNET).apply({"params": unet}, x, time, conditions, added)
    square = jnp.square(v - wanted) * weights
    return jnp.mean(jnp.mean(square, axis=(1, 2, 3)) * time_weight(alpha_bar[t], GAMMA))


def injected(net: Any, x: jax.Array, t: jax.Array, conditions: Conditions, hint: jax.Array) -> Injections:
    """What a net, by its parameters, adds inside the U-Net; hint: what its convolutions make of the map."""
    own = {name: module for name, module in net.items() if name != HINT}
    *skips, middle = ControlNet(control_lora.CONFIG).apply({"params": own}, x, t, conditions, hint)
    return Injections(skips=tuple(skips), middle=middle)


class Maps:
    """The encoded pictures with their maps in memory, and the batch of any step."""

    def __init__(self, folder: Path, net: str, *, batch: int, seed: int, part: float = 0.0) -> None:
        """part: of every batch that is drawn from the pictures whose objects overlap, beside those that come anyway."""
        file = encode_control.data(folder)
        self.latents, self.contexts = file["latents"], train_pictures.contexts(file["ids"])
        self.maps, self.weights = file[net], object_weights(file["latents"])
        self.empty = train_pictures.contexts(train_pictures.tokenizer().tokens([""]))[0]
        self.overlapping = np.flatnonzero(overlap(file["depth"]))
        self.net, self.size, self.seed, self.part = net, batch, seed, part

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `loss` takes it."""
        rng = np.random.default_rng([self.seed, n])
        chosen = rng.integers(len(self.latents), size=self.size)
        if self.part:
            hard = rng.random(self.size) < self.part
            chosen[hard] = rng.choice(self.overlapping, hard.sum())
        context = self.contexts[chosen]
        context[rng.random(self.size) < EMPTY] = self.empty
        parts = {"latents": self.latents[chosen], "context": context, "weights": self.weights[chosen]}
        return parts | {"map": seen(self.net, self.maps[chosen])}


def overlap(depth: np.ndarray) -> np.ndarray:
    """Whether the near object lies over the far one, bool [b], of raw maps [b, H, W]."""
    sides = ((depth[:, 1:], depth[:, :-1]), (depth[:, :, 1:], depth[:, :, :-1]))
    beside = [((a == 1) & (b == 2) | (a == 2) & (b == 1)).any((1, 2)) for a, b in sides]
    return beside[0] | beside[1]


def seen(net: str, maps: np.ndarray) -> np.ndarray:
    """Maps as they are stored, as the net sees them: float32 [b, H, W, 3] in [0, 1]; near is white."""
    if net == "edges":
        return edges.as_map(np.unpackbits(maps, axis=-1))
    nearest = maps.max((1, 2), keepdims=True)
    return np.repeat((maps / np.maximum(nearest, 1)).astype(np.float32)[..., None], 3, axis=-1)


def metadata() -> dict[str, str]:
    """What the file says of itself."""
    told = {
        name: FLAGS[name].value for name in ("net", "rank", "steps", "batch", "learning_rate", "overlapping", "seed")
    }
    return {
        "modelspec.title": f"sdjax shapes, {FLAGS.net}",
        "ss_training_comment": "sdjax, experiments/shapes/train_control.py; for sdjax/assets/shapes",
        "sdjax.training": json.dumps(told | {"start": Path(FLAGS.start).name if FLAGS.start else ""}),
    }


def main() -> None:
    unet = train_pictures.shipped_unet()
    pictures = Maps(Path(FLAGS.data), FLAGS.net, batch=FLAGS.batch, seed=FLAGS.seed, part=FLAGS.overlapping)
    begun = control_lora.fresh(unet, FLAGS.rank, FLAGS.seed)
    if FLAGS.start:
        begun = control_lora.untensors(load_file(Path(FLAGS.start) / control_lora.FILE), unet)
    print("numbers to learn:", sum(p.size for p in jax.tree.leaves(begun)), "maps:", len(pictures.maps), flush=True)
    step = make_plain_step(partial(loss, alphas_cumprod(), REPEAT), OPTIMISERS["muon"], [Decay(FLAGS.ema)], unet)
    names = ("net", "rank", "steps", "batch", "learning_rate", "ema", "start", "overlapping", "seed")
    state = fit(
        FLAGS.out,
        step.begin(begun),
        step,
        pictures.batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall=FLAGS.steps // 2, warmup=20),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names},
        every=20,
        limit_seconds=FLAGS.limit,
        report=partial(print, flush=True),
    )
    folder = Path(FLAGS.out) / FLAGS.net
    control_lora.save(folder, step.evaluated(state), metadata())
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    flags.DEFINE_enum("net", None, NETS, "Which of the two.", required=True)
    flags.DEFINE_string("data", "runs/control_data", "Folder that encode_control wrote.")
    flags.DEFINE_string("out", None, "Folder of the run; started again, it goes on where it was.", required=True)
    flags.DEFINE_string("start", None, "Folder of a net to begin with.")
    flags.DEFINE_integer("rank", 16, "Of every factor.", lower_bound=1)
    flags.DEFINE_integer("steps", 700, "Optimiser steps.")
    flags.DEFINE_integer("batch", 8, f"Maps per step, each with {REPEAT} noises.")
    flags.DEFINE_float("learning_rate", 0.005, "Peak rate of the kernels.")
    flags.DEFINE_float("ema", 0.98, "Decay of the averaged parameters.")
    flags.DEFINE_float("overlapping", 0.0, "Part of a batch drawn from pictures whose objects overlap.")
    flags.DEFINE_float("limit", None, "Seconds after which it saves and stops.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
