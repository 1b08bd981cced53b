"""Data of the two U-Nets that see more than a text: pictures, and what stands beside the noisy latents, encoded once.

    python -m experiments.shapes.encode_pictures --task=inpainting --count=6000 --out=runs/inpainting_data
    python -m experiments.shapes.encode_pictures --task=depth --count=10000 --out=runs/depth_data

The autoencoder is the shipped model's. About a quarter of an hour for both on 2 cores, at once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import _cli
from experiments.shapes import depth, inpainting, models
from experiments.shapes.batches import write_arrays
from experiments.shapes.encode import encoder
from sdjax.images.depth import depth_channel
from sdjax.images.masks import latent_mask, masked
from sdjax.images.pixels import from_uint8

FLAGS = flags.FLAGS

SEEDS = {"inpainting": 21, "depth": 22}
"""Of the pictures learnt from; `picture_report` draws from others."""
TOGETHER = 64
"""Pictures encoded at once."""

Encode = Callable[[np.ndarray], np.ndarray]
Encoded = tuple[np.ndarray, np.ndarray, list[str]]


def shapes_encoder() -> Encode:
    """The shipped autoencoder: pixels [b, 128, 128, 3] in [-1, 1] to latents float16 [b, 16, 16, 4]."""
    apply = encoder(jax.tree.map(lambda p: p.astype(np.float32), models.shipped("vae", models.VAE)))
    return lambda x: np.asarray(apply(x), np.float16)


def inpainting_pictures(encode: Encode, start: int, count: int, masks: int) -> Encoded:
    """Latents [count, 16, 16, 4], mask and masked latents [count, masks, 16, 16, 5], captions."""
    drawn = list(inpainting.examples(SEEDS["inpainting"], start, count, masks))
    pixels = from_uint8(np.stack([picture for picture, _, _ in drawn]))
    holes = np.array([some for _, some, _ in drawn], np.float32)[..., None]
    small = np.array([[latent_mask(hole, inpainting.FACTOR) for hole in some] for some in holes])
    hidden = [encode(masked(pixels, holes[:, k])) for k in range(masks)]
    channels = np.concatenate([small.astype(np.float16), np.stack(hidden, axis=1)], axis=-1)
    return encode(pixels), channels, [scene.caption() for _, _, scene in drawn]


def depth_pictures(encode: Encode, start: int, count: int) -> Encoded:
    """Latents [count, 16, 16, 4], depth [count, 1, 16, 16, 1], captions."""
    drawn, size = list(depth.cases(SEEDS["depth"], start, count)), (models.UNET.sample_size,) * 2
    pixels = from_uint8(np.stack([case.picture for case in drawn]))
    channels = np.array([[depth_channel(case.depth, size)] for case in drawn], np.float16)
    return encode(pixels), channels, [case.scene.caption() for case in drawn]


def groups(count: int) -> Iterator[tuple[int, int]]:
    """Start and length of each group of pictures."""
    for start in range(0, count, TOGETHER):
        yield start, min(TOGETHER, count - start)


def main() -> None:
    out, encode = Path(FLAGS.out), shapes_encoder()
    make: Callable[[Encode, int, int], Encoded] = depth_pictures
    if FLAGS.task == "inpainting":
        make = partial(inpainting_pictures, masks=FLAGS.masks)
    tokenizer = models.tokenizer()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, length in groups(FLAGS.count):
        some, beside, captions = make(encode, start, length)
        parts.append((some, beside, tokenizer.tokens(captions)))
        if start // TOGETHER % 20 == 0:
            print(f"{start + length}/{FLAGS.count}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    latents, channels, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
    write_arrays(out / "pictures.npz", {"latents": latents, "channels": channels, "ids": ids})


if __name__ == "__main__":
    flags.DEFINE_enum("task", None, list(SEEDS), "Which of the two.", required=True)
    flags.DEFINE_string("out", None, "Folder for the data.", required=True)
    flags.DEFINE_integer("count", 12000, "Pictures.", lower_bound=1)
    flags.DEFINE_integer("masks", 2, "Holes in each picture, for inpainting.", lower_bound=1)
    _cli.run(main)
