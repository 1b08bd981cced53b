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
from collections.abc import Mapping
from dataclasses import dataclass
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
from experiments.shapes.train_unet import WEIGHTING
from sdjax.core.keys import key
from sdjax.train.averages import Decay
from sdjax.train.loop import fit
from sdjax.train.methods.controlnet import ControlDenoising
from sdjax.train.objective import Batch, picture_keys, size
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_step

FLAGS = flags.FLAGS

NETS = ("edges", "depth")
EMPTY = 0.3
"""Part of the captions that are left out."""
REPEAT = 3
"""Noises for each map of a batch."""


@dataclass(frozen=True)
class Steering(ControlDenoising):
    """The U-Net's own loss with the net beside it, of `repeat` noises for each map of a batch."""

    repeat: int = REPEAT

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` and `timesteps`, `b r`."""
        b = size(batch)
        many = super().draw({"keys": picture_keys(key, b * self.repeat)}, key)
        return {**batch, **{name: many[name].reshape(b, self.repeat) for name in many}}

    def errors(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """See `Denoising`: of each map the mean over its noises."""
        own = {name: batch[name].reshape(-1) for name in ("keys", "timesteps")}
        shared = {name: jnp.repeat(leaf, self.repeat, axis=0) for name, leaf in batch.items() if name not in own}
        each, square = super().errors(params, {**shared, **own, "map": batch["map"]})
        return each.reshape(-1, self.repeat).mean(1), square.reshape(-1, self.repeat).mean(1)

    def hint(self, params: Mapping[str, Any], batch: Batch) -> jax.Array:
        """See `ControlDenoising`; each map is looked at once."""
        return jnp.repeat(super().hint(params, batch), self.repeat, axis=0)


class Maps:
    """The encoded pictures with their maps in memory, and the batch of any step."""

    def __init__(self, folder: Path, net: str, *, batch: int, seed: int, part: float = 0.0) -> None:
        """part: of every batch that is drawn from the pictures whose objects overlap, beside those that come anyway."""
        file = encode_control.data(folder)
        self.latents, self.contexts = file["latents"], train_pictures.contexts(file["ids"])
        self.maps, self.weights = file[net], object_weights(file["latents"])
        self.empty = train_pictures.contexts(models.tokenizer().tokens([""]))[0]
        self.overlapping = np.flatnonzero(overlap(file["depth"]))
        self.net, self.size, self.seed, self.part = net, batch, seed, part

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `Steering` takes it."""
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
    params, method = {"unet": train_pictures.shipped_unet()}, control_lora.TrainControlLora(FLAGS.rank)
    pictures = Maps(Path(FLAGS.data), FLAGS.net, batch=FLAGS.batch, seed=FLAGS.seed, part=FLAGS.overlapping)
    begun = method.start(params, key(FLAGS.seed))
    if FLAGS.start:
        begun = control_lora.untensors(load_file(Path(FLAGS.start) / control_lora.FILE), params["unet"])
    print("numbers to learn:", sum(p.size for p in jax.tree.leaves(begun)), "maps:", len(pictures.maps), flush=True)
    objective = Steering(models.architecture(), weighting=WEIGHTING, control=control_lora.CONFIG)
    step = make_step(objective, method, begun, params, OPTIMISERS["muon"], [Decay(FLAGS.ema)])
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
    folder = method.write(step.evaluated(state), params, Path(FLAGS.out) / FLAGS.net, metadata())
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
