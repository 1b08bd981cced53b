"""Trains a VAE, or the decoder of one, on a folder of pictures.

    python -m experiments.train_vae --data=pictures --out=runs/vae --start=shapes --part=decoder
    python -m experiments.train_vae --data=pictures --out=runs/vae --config=vae.json --steps=5000
    python -m experiments.train_vae .. --loss=published --adversarial_from=2000 --lpips=vgg.safetensors

The first goes on from a VAE (a folder in the diffusers layout, a model's, or "shapes", that of the model which comes
with sdjax), its latents as they were; the second begins with nothing but a config.json. --loss=simple is L1 + L2 +
edges (`losses.autoencoding`), published what latent diffusion's were trained by (`losses.adversarial`). What comes of
it is OUT/vae, for `sdjax.load(vae="OUT")` and diffusers' `AutoencoderKL.from_pretrained`. Where the encoder
learns too, the scale of its latents is measured and written there.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _cli, _fit
from sdjax.config import VaeConfig
from sdjax.core.tree import Params
from sdjax.images.pixels import to_uint8
from sdjax.model.builtin import ASSETS, SHIPPED
from sdjax.nn.discriminator import NORMS, PatchDiscriminator
from sdjax.nn.shapes import expected_params
from sdjax.nn.vae import Autoencoder
from sdjax.train.data import buckets, scan, sources
from sdjax.train.data.batches import Batches, Form
from sdjax.train.data.captions import Captions
from sdjax.train.data.crops import Crops
from sdjax.train.evaluation.reconstruction import psnr, reconstructed, scaling_factor
from sdjax.train.losses.adversarial import AdversarialAutoencoding
from sdjax.train.losses.autoencoding import Autoencoding
from sdjax.train.losses.perceptual import ClipTerm, LpipsTerm, Perceptual
from sdjax.train.methods.clip import read_clip
from sdjax.train.methods.vae import PARTS, VaeTraining
from sdjax.train.optimisers import Optimiser
from sdjax.train.state import fresh
from sdjax.weights import open_vae, read_json

FLAGS = flags.FLAGS

OPTIMISERS = {
    "adam": Optimiser("adamw", b1=0.5, b2=0.9, weight_decay=0.0, clip=None),  # as published
    "adamw": Optimiser("adamw"),
    "muon": Optimiser("muon"),
}


def define_flags() -> None:
    _fit.define_flags(2000, 8, 1e-4, OPTIMISERS)
    flags.DEFINE_string("start", None, "A VAE to go on from: its folder, a model's, a .safetensors file, or shapes.")
    flags.DEFINE_string("config", None, "config.json of a VAE; of a new one where there is no --start.")
    flags.DEFINE_enum("part", "all", list(PARTS), "What learns. decoder: latents stay what they are.")
    flags.DEFINE_integer("size", 64, "Height and width of the crops, pixels.", lower_bound=8)
    flags.DEFINE_boolean("flip", True, "Whether pictures are flipped every second time.")
    flags.DEFINE_enum("loss", "simple", ["simple", "published"], "See above.")
    flags.DEFINE_float("kl", None, "Weight of the KL; by default 1e-6 a picture, as published.", lower_bound=0.0)
    flags.DEFINE_float("noise", 0.0, "Of the simple loss: noise on the latents, of their spread.", lower_bound=0.0)
    flags.DEFINE_multi_string("lpips", [], "Files with VGG-16 and LPIPS's weights, for a perceptual term.")
    flags.DEFINE_string("clip", None, "Folder of a CLIP, for a perceptual term by its image encoder.")
    flags.DEFINE_float("perceptual_weight", 1.0, "Weight of the perceptual term.", lower_bound=0.0)
    flags.DEFINE_boolean("square", False, "Of the published loss: squares in place of absolute errors.")
    flags.DEFINE_integer("adversarial_from", 50_000, "Of the published loss: step that lets the discriminator in.")
    flags.DEFINE_integer("discriminator_width", 64, "Of the published loss: channels of its first layer.", 1)
    flags.DEFINE_enum("discriminator_norm", "batch", list(NORMS), "batch, as published, or group.")


def begun() -> tuple[VaeConfig, Params]:
    """The VAE before the first step. Raises ValueError, CheckpointError."""
    told = read_json(FLAGS.config) if FLAGS.config else None
    if FLAGS.start is None:
        if told is None:
            raise ValueError("--start or --config must be given: a VAE to go on from, or the config.json of a new one")
        if FLAGS.part != "all":
            raise ValueError(f"--part={FLAGS.part} needs --start: what does not learn must have been trained before")
        config = VaeConfig.from_dict(told)
        return config, fresh(Autoencoder(config), FLAGS.seed, jnp.zeros((1, config.factor, config.factor, 3)))
    path = ASSETS / FLAGS.start.replace("-", "_") if FLAGS.start in SHIPPED else Path(FLAGS.start)
    opened = open_vae(path)
    own = opened.config or told
    if own is None:
        raise ValueError(f"--start={FLAGS.start} is a file, which does not say its sizes: give its --config too")
    config = VaeConfig.from_dict(own)
    return config, opened.read(own, expected_params({"vae": config})["vae"], jnp.float32)[0]


def perceptual() -> tuple[Perceptual | None, dict[str, Any]]:
    """The perceptual term that the flags ask for, and its parameters."""
    if FLAGS.lpips and FLAGS.clip:
        raise ValueError("--lpips and --clip are two perceptual terms; give one")
    if FLAGS.lpips:
        return LpipsTerm(), {"perceptual": LpipsTerm().read(FLAGS.lpips)}
    if FLAGS.clip:
        clip = read_clip(FLAGS.clip)
        return ClipTerm(clip.vision), {"perceptual": clip.params["image_encoder"]}
    return None, {}


def objective(config: VaeConfig, term: Perceptual | None) -> Autoencoding | AdversarialAutoencoding:
    """What the flags ask for."""
    weight = FLAGS.perceptual_weight
    if FLAGS.loss == "simple":
        kl = 1e-6 * config.latent_channels / (3 * config.factor**2) if FLAGS.kl is None else FLAGS.kl
        return Autoencoding(config, kl=kl, perceptual=term, perceptual_weight=weight, noise=FLAGS.noise)
    discriminator = PatchDiscriminator(FLAGS.discriminator_width, norm=FLAGS.discriminator_norm)
    kl = 1e-6 if FLAGS.kl is None else FLAGS.kl
    return AdversarialAutoencoding(config, discriminator, term, weight, FLAGS.square, kl)


def main() -> None:
    config, vae = begun()
    if FLAGS.size % config.factor:
        raise ValueError(f"--size={FLAGS.size} is no multiple of {config.factor}, pixels of a latent in this VAE")
    term, more = perceptual()
    what = objective(config, term)
    dataset = scan.scan(sources.find(FLAGS.data, caption=""), report=print)
    _fit.told(dataset)
    learnt_from, held_out = _fit.parted(dataset, FLAGS.held_out)
    cut = buckets.square(FLAGS.size)
    crops = Crops(random=True, flip=FLAGS.flip)
    batches = Batches(learnt_from, no_texts, cut, FLAGS.batch, FLAGS.seed, Form(config.factor), crops, Captions(0.0))
    watched = Batches(held_out, no_texts, cut, FLAGS.held_out, 0, Form(config.factor), captions=Captions(0.0))
    pixels = watched.batch(0)["pixels"]

    def batch(n: int) -> dict[str, Any]:
        let_in = FLAGS.loss == "published" and n >= FLAGS.adversarial_from
        return {"pixels": batches.batch(n)["pixels"], "adversarial": np.full(FLAGS.batch, let_in, np.float32)}

    report("before", config, vae, pixels)
    method = VaeTraining(config, FLAGS.part, getattr(what, "discriminator", None))
    settings = _fit.settings(__name__, dataset)
    learnt = _fit.trained(method, what, {"vae": vae, **more}, batch, OPTIMISERS[FLAGS.optimiser], settings)
    after = method.join(learnt, {"vae": vae})["vae"]
    report("after", config, after, pixels)
    metadata = {}
    if FLAGS.part == "all":
        count = min(64, -(-len(learnt_from.items) // FLAGS.batch))
        metadata["scaling_factor"] = str(scaling_factor(config, after, map(batches.batch, range(count))))
    print(method.write(learnt, {"vae": jax.device_get(vae)}, Path(FLAGS.out), metadata))


def report(when: str, config: VaeConfig, vae: Params, pixels: np.ndarray) -> None:
    """Prints how well the held-out pictures come back."""
    found = psnr(to_uint8(pixels), reconstructed(config, vae, pixels))
    worst, count = found.min(), len(found)
    print(f"{when}: PSNR {found.mean():.2f} dB of {count} pictures held out, the worst {worst:.2f}", flush=True)


def no_texts(texts: Any) -> dict[str, Any]:
    """A VAE is told nothing."""
    return {}


if __name__ == "__main__":
    _cli.run(main, define_flags)
