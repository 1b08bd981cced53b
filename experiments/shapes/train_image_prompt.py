"""The image prompt of the shapes model: an IP-Adapter of the kind "base", and the image encoder that it looks through.

    python -m experiments.shapes.train_image_prompt --out=runs/image_prompt_begun --see_steps=1600 --steps=0
    python -m experiments.shapes.train_image_prompt --data=runs/control_data --out=runs/image_prompt \\
        --see_start=runs/image_prompt_begun --one=1 --see_steps=900

Writes `<out>/image_prompt.safetensors` and `<out>/image_encoder`, float16. Started again on the same folder it goes on
where it was. As the model itself was trained, what sees comes first, from pictures and captions without the U-Net
(`image_tokens`); then, with encoder and U-Net as they are, the projection and the keys and values of pictures, which
begin as those of texts. The loss is the U-Net's own (`train_unet`). ALONE, NEITHER and TEXT of the batch lack the
caption, both, and the picture: the published recipe, but for captions, of which most are left out, since in this world
a caption says nearly all that a picture does, and nothing of the picture would be learnt.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import encode_control, image_tokens, models, train_pictures
from experiments.shapes.batches import object_weights
from experiments.shapes.optimisers import OPTIMISERS
from experiments.shapes.train_unet import WEIGHTING
from sdjax.adapters.image_prompt_names import PROJECTION
from sdjax.core.keys import key
from sdjax.nn.image_prompt import projection
from sdjax.train.averages import Decay
from sdjax.train.loop import averaged, fit
from sdjax.train.methods.image_prompt import ImagePromptDenoising, ImagePromptTraining
from sdjax.train.rates import WarmupStableDecay
from sdjax.train.step import make_plain_step, make_step
from sdjax.weights import default_layout, save_component

FLAGS = flags.FLAGS

ALONE, NEITHER, TEXT = 0.5, 0.05, 0.05
"""Parts of a batch: the picture without its caption, neither, the caption without its picture."""
EMPTY = 0.1
"""Part of the pictures in the first stage that are none."""
SEED = 24
"""Of the pictures that the encoder learns from."""
CHECK_SEED = 1_000_002
METHOD = ImagePromptTraining(image_tokens.CONFIG)


def see_loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Mean squared error of the tokens; batch: "pixels" `b H W 3`, "there" `b` (0: no picture), "tokens" `b m d`."""
    del key
    module = image_tokens.MODULE
    embedding = module.apply(
        {"params": params}, batch["pixels"], method=lambda own, pixels: own.image_encoder.outputs(pixels).embedding
    )
    tokens = projected(params["image_proj"], embedding * batch["there"][:, None])
    return jnp.mean(jnp.square(tokens - batch["tokens"].astype(jnp.float32)))


def projected(params: Any, embedding: jax.Array | np.ndarray) -> jax.Array:
    """Tokens `b m d` of embeddings `b e`."""
    return projection(image_tokens.CONFIG, jnp.float32).apply({"params": params}, embedding)


class Seen:
    """Pictures of any scenes with their tokens, for the first stage."""

    def __init__(self, count: int, one: float, batch: int, seed: int) -> None:
        drawn = image_tokens.scenes(SEED, 0, count, one=one)
        self.small = np.stack([small for _, small in drawn])
        self.tokens = image_tokens.targets([scene.caption() for scene, _ in drawn])
        self.none, self.size, self.seed = image_tokens.targets([""])[0], batch, seed

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `see_loss` takes it."""
        rng = np.random.default_rng([self.seed, n])
        chosen = rng.integers(len(self.small), size=self.size)
        there, tokens = rng.random(self.size) >= EMPTY, self.tokens[chosen]
        tokens[~there] = self.none
        return {
            "pixels": image_tokens.pixels(self.small[chosen]),
            "there": there.astype(np.float32),
            "tokens": tokens,
        }


class Pictures:
    """The encoded pictures with their embeddings, for the second stage."""

    def __init__(self, folder: Path, params: Any, batch: int, seed: int) -> None:
        file = encode_control.data(folder)
        self.latents, self.weights = file["latents"], object_weights(file["latents"])
        self.contexts = train_pictures.contexts(file["ids"])
        self.embeddings = embeddings(params, file["small"])
        self.empty = train_pictures.contexts(models.tokenizer().tokens([""]))[0]
        self.size, self.seed = batch, seed

    def batch(self, n: int) -> dict[str, np.ndarray]:
        """Step n's batch, as `ImagePromptDenoising` takes it."""
        rng = np.random.default_rng([self.seed, n])
        chosen, kind = rng.integers(len(self.latents), size=self.size), rng.random(self.size)
        context, embedding = self.contexts[chosen], self.embeddings[chosen]
        context[kind < ALONE + NEITHER] = self.empty
        embedding[(kind >= ALONE) & (kind < ALONE + NEITHER + TEXT)] = 0
        parts = {"latents": self.latents[chosen], "weights": self.weights[chosen]}
        return parts | {"context": context, "embedding": embedding}


def embeddings(params: Any, small: np.ndarray) -> np.ndarray:
    """What the encoder makes of pictures uint8 [n, s, s, 3]: float32 [n, e]."""
    module = image_tokens.MODULE
    encode = jax.jit(
        lambda params, x: module.apply(
            {"params": params}, x, method=lambda own, pixels: own.image_encoder.outputs(pixels).embedding
        )
    )
    groups = [image_tokens.pixels(small[start : start + 128]) for start in range(0, len(small), 128)]
    return np.concatenate([np.asarray(encode(params, group)) for group in groups])


def train_encoder() -> Any:
    """The first stage: encoder and projection; prints how many new pictures are read rightly."""
    listed = ("pictures", "one", "see_batch", "see_steps", "see_rate", "see_start", "seed")
    step = make_plain_step(see_loss, OPTIMISERS["muon"], [Decay(0.99)])
    params = image_tokens.init_params(FLAGS.seed)
    if FLAGS.see_start:
        params = averaged(Path(FLAGS.see_start) / "see", params)
    state = fit(
        Path(FLAGS.out) / "see",
        step.begin(params),
        step,
        Seen(FLAGS.pictures, FLAGS.one, FLAGS.see_batch, FLAGS.seed).batch,
        WarmupStableDecay(FLAGS.see_rate, FLAGS.see_steps, fall=FLAGS.see_steps // 2),
        steps=FLAGS.see_steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in listed},
        report=partial(print, flush=True),
    )
    params = step.evaluated(state)
    for pairs in ("seen", "unseen"):
        checked = image_tokens.scenes(CHECK_SEED, 0, 500, pairs, FLAGS.one)
        tokens = projected(params["image_proj"], embeddings(params, np.stack([small for _, small in checked])))
        read = image_tokens.right(np.asarray(tokens), [scene for scene, _ in checked])
        print(f"pictures read rightly, {pairs} pairs: {read.mean():.1%}", flush=True)
    return params


def begun(params: Any, unet: Any) -> dict[str, Any]:
    """The second stage's parameters before its first step: the keys and values are those of texts."""
    return METHOD.start({"unet": unet}, key(0)) | {PROJECTION: params["image_proj"]}


def metadata() -> dict[str, str]:
    """What the file says of itself."""
    told = {name: FLAGS[name].value for name in ("steps", "batch", "learning_rate", "see_steps", "seed")}
    return {
        "ss_training_comment": "sdjax, experiments/shapes/train_image_prompt.py; for sdjax/assets/shapes",
        "sdjax.training": json.dumps(told),
    }


def save(out: Path, encoder: Any, trained: Any, unet: Any, metadata: Mapping[str, str]) -> Path:
    """Writes the adapter and, in a folder beside it, its encoder: where the adapter's file is. Raises OSError."""
    encoder, trained = jax.tree.map(lambda p: np.asarray(p, np.float16), (encoder, trained))
    save_component(out / "image_encoder", encoder, default_layout(encoder, image_tokens.ENCODER_JSON))
    return METHOD.write(trained, {"unet": unet}, out, metadata).replace(out / "image_prompt.safetensors")


def main() -> None:
    out, unet = Path(FLAGS.out), train_pictures.shipped_unet()
    params = train_encoder()
    if not FLAGS.steps:
        return
    listed = ("steps", "batch", "learning_rate", "ema", "seed")
    objective = ImagePromptDenoising(models.architecture(), weighting=WEIGHTING, image_prompt=image_tokens.CONFIG)
    trainable = begun(params, unet)
    step = make_step(objective, METHOD, trainable, {"unet": unet}, OPTIMISERS["muon"], [Decay(FLAGS.ema)])
    state = fit(
        out / "steer",
        step.begin(trainable),
        step,
        Pictures(Path(FLAGS.data), params, FLAGS.batch, FLAGS.seed).batch,
        WarmupStableDecay(FLAGS.learning_rate, FLAGS.steps, fall=FLAGS.steps // 2, warmup=20),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        settings={name: FLAGS[name].value for name in listed},
        report=partial(print, flush=True),
    )
    path = save(out, params["image_encoder"], step.evaluated(state), unet, metadata())
    size = sum(one.stat().st_size for one in (path, *(out / "image_encoder").iterdir()))
    print(f"{path} and its encoder: {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("data", "runs/control_data", "Folder that encode_control wrote.")
    flags.DEFINE_string("out", "runs/image_prompt", "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_integer("pictures", 16000, "That the encoder learns from.", lower_bound=1)
    flags.DEFINE_float("one", 0.75, "Part of these that shows one object.")
    flags.DEFINE_string("see_start", None, "Folder of a run whose encoder is trained on.")
    flags.DEFINE_integer("see_batch", 64, "Pictures per step of the first stage.")
    flags.DEFINE_integer("see_steps", 1600, "Optimiser steps of the first stage.")
    flags.DEFINE_float("see_rate", 0.01, "Peak rate of the kernels in the first stage.")
    flags.DEFINE_integer("steps", 300, "Optimiser steps of the second stage; 0 leaves it out.")
    flags.DEFINE_integer("batch", 32, "Pictures per step of the second stage.")
    flags.DEFINE_float("learning_rate", 0.002, "Peak rate of the kernels in the second stage.")
    flags.DEFINE_float("ema", 0.98, "Decay of the averaged parameters of the second stage.")
    flags.DEFINE_integer("seed", 0, "Seed of the data, the parameters and the noise.")
    _cli.run(main)
