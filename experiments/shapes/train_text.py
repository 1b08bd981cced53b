"""Stage 3 of the shapes model: the text encoder, from captions alone.

    python -m experiments.shapes.train_text --out=runs/text

The mean squared error of the last hidden states to the codes of `meanings`, over fresh captions of seen pairs. Prints
at the end how many captions have every slot right, of seen pairs and with an unseen one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import meanings, models, world
from experiments.shapes.optimisers import OPTIMISERS
from sdjax.model.builtin import ASSETS, SHAPES
from sdjax.nn.clip import ClipTextEncoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.averages import Decay
from sdjax.train.loop import averaged, fit, newest_step
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.state import fresh
from sdjax.train.step import make_plain_step

FLAGS = flags.FLAGS

EMPTY = 0.02  # part of the captions that are ""
CHECK_SEED = 1_000_001


def init_params(vocab_size: int, seed: int) -> dict:
    """Fresh parameters of the text encoder."""
    ids = jnp.zeros((1, models.MAX_LENGTH), jnp.int32)
    return fresh(ClipTextEncoder(models.text_config(vocab_size)), seed, ids)


def loss(encoder: ClipTextEncoder, params: dict, batch: dict, key: jax.Array) -> jax.Array:
    """Mean squared error; batch: "ids" int32 `b l`, "codes" `b l d`."""
    del key
    states = encoder.apply({"params": params}, batch["ids"]).last_hidden_state
    return jnp.mean(jnp.square(states - batch["codes"]))


def captions(n: int, count: int, tokenizer: Tokenizer, seed: int, pairs: world.Pairs = "seen") -> dict[str, np.ndarray]:
    """Step n's batch, as `loss` takes it."""
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


def trained_params(folder: str) -> dict:
    """The averaged parameters of a run of this stage, on the host. Raises FileNotFoundError, ValueError."""
    newest_step(folder)  # before anything is compiled
    params = init_params(Tokenizer.load(ASSETS / SHAPES / "tokenizer").size, 0)
    return averaged(folder, params)


def main() -> None:
    tokenizer = Tokenizer.load(ASSETS / SHAPES / "tokenizer")
    encoder, params = ClipTextEncoder(models.text_config(tokenizer.size)), init_params(tokenizer.size, FLAGS.seed)
    step = make_plain_step(partial(loss, encoder), OPTIMISERS["adamw"], [Decay(0.99)])
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
    trained = step.evaluated(state)
    for pairs in ("seen", "unseen"):
        print(f"captions read right, {pairs} pairs: {right(encoder, trained, tokenizer, pairs):.2%}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/text", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("steps", 600, "Optimiser steps.")
    flags.DEFINE_integer("batch", 128, "Captions per step.")
    flags.DEFINE_float("learning_rate", 2e-3, "Peak rate.")
    flags.DEFINE_integer("seed", 0, "Seed of the captions and the parameters.")
    _cli.run(main)
