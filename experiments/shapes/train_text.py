"""Stage 3 of the shapes model: the text encoder, from captions alone.

    python -m experiments.shapes.train_text --out=runs/text

The mean squared error of the last hidden states to the codes of `meanings`, over fresh captions of seen pairs. Prints
at the end how many captions have every slot right, of seen pairs and with an unseen one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import meanings, models, world
from experiments.shapes.batches import Encode
from experiments.shapes.optimisers import OPTIMISERS
from sdjax.config import ClipTextConfig
from sdjax.nn.clip import ClipTextEncoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.architecture import TextTower
from sdjax.train.averages import Decay
from sdjax.train.loop import averaged, fit, newest_step
from sdjax.train.methods.full import TEXT_ENCODER, Full
from sdjax.train.objective import Batch, Metrics, mean
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.state import fresh
from sdjax.train.step import make_step

FLAGS = flags.FLAGS

EMPTY = 0.02  # part of the captions that are ""
CHECK_SEED = 1_000_001


def init_params(vocab_size: int, seed: int) -> dict:
    """Fresh parameters of the text encoder."""
    ids = jnp.zeros((1, models.MAX_LENGTH), jnp.int32)
    return fresh(ClipTextEncoder(models.text_config(vocab_size)), seed, ids)


@dataclass(frozen=True)
class Saying:
    """The objective: mean squared error of the last hidden states; batch: "ids" int32 `b l`, "codes" `b l d`."""

    tower: TextTower

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Nothing is random."""
        del key
        return batch

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `sdjax.train.objective`."""
        states, _ = self.tower(params[self.tower.component], batch["ids"])
        value, count = mean(jnp.mean(jnp.square(states - batch["codes"]), axis=(1, 2)), batch)
        return value, {"loss": value, "count": count}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `sdjax.train.objective`."""
        return self.loss(params, self.draw(batch, key))


def captions(n: int, count: int, tokenizer: Tokenizer, seed: int, pairs: world.Pairs = "seen") -> dict[str, np.ndarray]:
    """Step n's batch, as `Saying` takes it."""
    rng = np.random.default_rng([seed, n])
    scenes = [world.sample_scene(rng, pairs=pairs) if rng.random() >= EMPTY else None for _ in range(count)]
    texts = ["" if scene is None else scene.caption() for scene in scenes]
    return {"ids": tokenizer.tokens(texts), "codes": meanings.codes(scenes)}


def right(encoder: ClipTextEncoder, params: dict, tokenizer: Tokenizer, pairs: world.Pairs, count: int = 2000) -> float:
    """The part of captions whose slots all read as they should."""
    batch = captions(0, count, tokenizer, CHECK_SEED, pairs)
    states = jax.jit(encoder.apply)({"params": params}, batch["ids"]).last_hidden_state
    slots = slice(-len(meanings.SLOTS), None)
    same = meanings.read(np.asarray(states)[:, slots]) == meanings.read(batch["codes"][:, slots])
    return float(same.all((1, 2)).mean())


def encoder_of(config: ClipTextConfig, params: dict) -> Encode:
    """The text encoder with these parameters."""
    encoder = ClipTextEncoder(config)
    apply = jax.jit(lambda params, ids: encoder.apply({"params": params}, ids).last_hidden_state)
    return lambda ids: apply(params, ids)


def trained_params(folder: str) -> dict:
    """The averaged parameters of a run of this stage, on the host. Raises FileNotFoundError, ValueError."""
    newest_step(folder)  # before anything is compiled
    params = init_params(models.tokenizer().size, 0)
    return averaged(folder, {"text_encoder": params})["text_encoder"]


def main() -> None:
    tokenizer = models.tokenizer()
    tower = TextTower("text_encoder", models.text_config(tokenizer.size))
    params = {"text_encoder": init_params(tokenizer.size, FLAGS.seed)}
    step = make_step(Saying(tower), Full(TEXT_ENCODER), params, params, OPTIMISERS["adamw"], [Decay(0.99)])
    names = ("steps", "batch", "learning_rate", "seed")
    state = fit(
        FLAGS.out,
        step.begin(params),
        step,
        lambda n: captions(n, FLAGS.batch, tokenizer, FLAGS.seed),
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall=2 * FLAGS.steps // 5),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in names},
        report=partial(print, flush=True),
    )
    encoder, trained = ClipTextEncoder(tower.config), step.evaluated(state)["text_encoder"]
    for pairs in ("seen", "unseen"):
        print(f"captions read right, {pairs} pairs: {right(encoder, trained, tokenizer, pairs):.2%}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/text", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("steps", 600, "Optimiser steps.")
    flags.DEFINE_integer("batch", 128, "Captions per step.")
    flags.DEFINE_float("learning_rate", 2e-3, "Peak rate.")
    flags.DEFINE_integer("seed", 0, "Seed of the captions and the parameters.")
    _cli.run(main)
