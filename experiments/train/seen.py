"""Pictures as an image encoder sees them, for an IP-Adapter, beside all else that a batch holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments import _files
from experiments.train.material import TEXT, Pictures
from sdjax.adapters.image_encoder import CONFIG, EncoderFolder
from sdjax.config import ClipVisionConfig
from sdjax.config.image_prompt import BASE, ImagePromptConfig
from sdjax.images.processor import Processor
from sdjax.images.read import open_bytes, read_image
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.train.data.batches import rows_of
from sdjax.train.data.scan import Item

LARGEST = 1 << 20  # bytes of a config.json


def encoder_folder(path: str) -> EncoderFolder:
    """An image encoder's folder. Raises ValueError, CheckpointError."""
    text = _files.read(Path(path) / CONFIG, "--image_encoder", LARGEST)
    try:
        config = ClipVisionConfig.from_dict(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"--image_encoder={path}: its {CONFIG} is no JSON ({error})") from None
    return EncoderFolder(Path(path), config)


def config_of(folder: EncoderFolder, text_width: int, tokens: int) -> ImagePromptConfig:
    """Of an adapter of the kind "base" that looks through the encoder."""
    width = folder.config.projection_dim
    if width is None:
        raise ValueError(f"--image_encoder={folder.path}: it gives no embedding; take one with a projection")
    return ImagePromptConfig(BASE, width, text_width, tokens)


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures with what the encoder makes of each: `batch` has an "embedding" `b e` too.

    Attributes:
      dropout: p; of a batch p lack the picture, p the caption, p both.
    """

    pictures: Pictures
    folder: EncoderFolder
    dropout: float
    seed: int
    embeddings: np.ndarray = field(init=False, repr=False)  # of every place in `pictures`

    def __post_init__(self) -> None:
        encoder = self.folder.read()
        see, processor = jax.jit(_embedding(self.folder.config)), Processor.from_dict(encoder.preprocessor)
        params, batches = jax.tree.map(jnp.asarray, encoder.params), self.pictures.batches
        made = [see(params, processor(read_image(_opened(item)))[None])[0] for item in batches.dataset.items]
        object.__setattr__(self, "embeddings", np.stack(made)[batches.pictures.places])

    def batch(self, step: int) -> dict[str, Any]:
        """See `Material`."""
        batches = self.pictures.batches
        own = slice(*rows_of(batches.size, batches.share))
        drawn = np.random.default_rng((self.seed, 4, step)).random(batches.size)[own]
        numbers = batches.order.places(step).numbers[own]
        return self._left_out(batches.batch(step) | {"embedding": self.embeddings[numbers]}, drawn)

    def fixed(self, count: int) -> dict[str, Any]:
        """See `Material`."""
        groups = self.pictures.batches.order.buckets
        numbers = max(groups, key=len)[:count]
        return self.pictures.fixed(count) | {"embedding": self.embeddings[numbers]}

    def pictures_of(self, count: int) -> list[Image.Image]:
        """The first so many, whole."""
        return [_opened(item) for item in self.pictures.batches.dataset.items[:count]]

    def _left_out(self, made: dict[str, Any], drawn: np.ndarray) -> dict[str, Any]:
        """A batch without what `drawn` `b`, uniform from 0 to 1, says is to be left out."""
        without_picture, without_text = drawn < 2 * self.dropout, (drawn >= self.dropout) & (drawn < 3 * self.dropout)
        made["embedding"] = np.where(without_picture[:, None], np.float32(0), made["embedding"])
        empty = self.pictures.unprompted(len(drawn))
        texts = {name: made[name] for name in TEXT if name in made}
        return made | jax.tree.map(lambda own, none: _replaced(own, none, without_text), texts, empty)

    def __getattr__(self, name: str) -> Any:
        """All else is the pictures'."""
        return getattr(self.pictures, name)


def _opened(item: Item) -> Image.Image:
    return open_bytes(item.record.read(), item.record.name)


def _replaced(own: np.ndarray, other: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where.reshape(-1, *(1,) * (own.ndim - 1)), other, own)


def _embedding(config: ClipVisionConfig) -> Any:
    def see(params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
        return ClipVisionEncoder(config).apply({"params": params}, pixels, method="outputs").embedding

    return see
