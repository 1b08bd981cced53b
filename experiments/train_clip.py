"""Trains a CLIP, of both encoders, on a folder of pictures with captions.

    python -m experiments.train_clip --data=pictures --out=runs/clip
    python -m experiments.train_clip --data=pictures --out=runs/clip --start=clip-vit-large --tokenizer=clip-vit-large

The first begins with nothing, of the sizes that the flags say and with the tokenizer of the shapes model; the second
goes on from a folder of transformers' CLIPModel. What comes of it is OUT/clip, for `CLIPModel.from_pretrained` and
`experiments.evaluate --clip=OUT/clip`. At the end it says how often, among the n pictures held out, a picture's own
caption is the nearest to it: 1/n by chance.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli, _fit
from sdjax.config import ClipTextConfig, ClipVisionConfig
from sdjax.model.builtin import ASSETS, SHAPES
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.data import buckets, scan, sources
from sdjax.train.data.batches import Batches, Form
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crops
from sdjax.train.losses.contrast import FORMS, Contrast
from sdjax.train.methods.clip import PARTS, PROJECTED, Clip, ClipTraining, read_clip
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import fresh

FLAGS = flags.FLAGS

OPTIMISERS = {
    "adamw": Optimiser("adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, clip=None),  # open_clip's, for a ViT
    "muon": Optimiser("muon"),
}


def define_flags() -> None:
    _fit.define_flags(1000, 64, 1e-3, OPTIMISERS)
    flags.DEFINE_string("start", None, "A CLIP to go on from: a folder of transformers' CLIPModel.")
    flags.DEFINE_string("tokenizer", None, "Its tokenizer's folder; by default that of the shapes model.")
    flags.DEFINE_enum("part", "both", list(PARTS), "What learns.")
    flags.DEFINE_enum("form", "clip", list(FORMS), "The loss; siglip is good with small batches.")
    flags.DEFINE_integer("size", 128, "Of a new one: height and width of pictures, pixels.", lower_bound=8)
    flags.DEFINE_integer("patch", 16, "Of a new one: height and width of a patch.", lower_bound=1)
    flags.DEFINE_integer("width", 128, "Of a new one: channels of both encoders.", lower_bound=32)
    flags.DEFINE_integer("layers", 3, "Of a new one: of both encoders.", lower_bound=1)
    flags.DEFINE_integer("embedding", 64, "Of a new one: numbers that pictures and texts become.", lower_bound=1)


def begun(tokenizer: Tokenizer) -> Clip:
    """The CLIP before the first step. Raises ValueError, CheckpointError."""
    if FLAGS.start is not None:
        clip = read_clip(FLAGS.start)
        if tokenizer.size > clip.text.vocab_size or tokenizer.max_length > clip.text.max_position_embeddings:
            raise ValueError(
                f"--tokenizer has {tokenizer.size} ids in rows of {tokenizer.max_length}, and --start's text encoder "
                f"{clip.text.vocab_size} in rows of {clip.text.max_position_embeddings}: give that CLIP's own"
            )
        return clip
    if FLAGS.part != "both":
        raise ValueError(f"--part={FLAGS.part} needs --start: the other encoder must have been trained before")
    shared = {
        "hidden_size": FLAGS.width,
        "intermediate_size": 4 * FLAGS.width,
        "num_hidden_layers": FLAGS.layers,
        "num_attention_heads": FLAGS.width // 32,
        "projection_dim": FLAGS.embedding,
    }
    words = {"vocab_size": tokenizer.size, "eos_token_id": tokenizer.eos}
    text = {**shared, **words, **PROJECTED, "max_position_embeddings": tokenizer.max_length}
    configs = (
        ClipTextConfig.from_dict(text),
        ClipVisionConfig.from_dict({**shared, "image_size": FLAGS.size, "patch_size": FLAGS.patch}),
    )
    ids, pixels = jnp.zeros((1, tokenizer.max_length), jnp.int32), jnp.zeros((1, FLAGS.size, FLAGS.size, 3))
    params = {
        "text_encoder": fresh(ClipTextEncoder(configs[0]), FLAGS.seed, ids),
        "image_encoder": fresh(ClipVisionEncoder(configs[1]), FLAGS.seed, pixels),
    }
    return Clip(*configs, params)


def main() -> None:
    tokenizer = Tokenizer.load(FLAGS.tokenizer or ASSETS / SHAPES / "tokenizer")
    clip = begun(tokenizer)
    what = Contrast(clip.text, clip.vision, FLAGS.form)
    method = ClipTraining(clip.text, clip.vision, FLAGS.part, FLAGS.form)
    dataset = scan.scan(sources.find(FLAGS.data), report=print)
    _fit.told(dataset)
    learnt_from, held_out = _fit.parted(dataset, FLAGS.held_out)
    tokens, cut = Tokens({"text_encoder": tokenizer}), buckets.square(clip.vision.image_size)
    form, every = Form(factor=1), Captions(dropout=0.0)
    # No flips: captions may tell left from right.
    batches = Batches(learnt_from, tokens, cut, FLAGS.batch, FLAGS.seed, form, Crops(random=True), every)
    watched = Batches(held_out, tokens, cut, FLAGS.held_out, 0, form, captions=every).batch(0)
    settings = _fit.settings(__name__, dataset)
    learnt = _fit.trained(method, what, clip.params, batches.batch, OPTIMISERS[FLAGS.optimiser], settings)
    after = method.join(learnt, clip.params)
    print(f"of {FLAGS.held_out} pictures held out, {found(what, after, watched):.1%} are nearest to their own caption")
    print(method.write(learnt, jax.device_get(clip.params), Path(FLAGS.out), {}))


def found(what: Contrast, params: Any, batch: dict[str, Any]) -> float:
    """The part of the pictures of a batch whose nearest caption is their own, or reads the same."""
    pictures, texts = (np.asarray(one) for one in jax.jit(what.embedded)(params, batch))
    ids = batch["ids"]["text_encoder"]
    nearest = np.argmax(pictures @ texts.T, axis=1)
    return float((ids[nearest] == ids).all(1).mean())


if __name__ == "__main__":
    _cli.run(main, define_flags)
