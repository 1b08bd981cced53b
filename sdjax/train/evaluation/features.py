"""Features: what a network makes of pictures, `n d` float32, in batches, whatever their sizes.

    InceptionFeatures    the FID's network, of weights that are given (`nn.inception`); resized as `resizing` says
    ClipFeatures         the embeddings of a CLIP image encoder in hand, prepared as CLIP's own pictures are

Both take uint8 pictures, since rounding is part of what is compared: what a model makes is rounded as a file would be.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax.config import ClipVisionConfig
from sdjax.images.processor import Processor
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.inception import SIDE, FidInception
from sdjax.nn.parameter import shapes
from sdjax.train.evaluation.resizing import resized
from sdjax.train.network_files import read_network


class Features(Protocol):
    """See above."""

    @property
    def name(self) -> str:
        """What stands beside a number that was made of them."""

    def __call__(self, pictures: Iterable[Image.Image], batch: int = 16) -> np.ndarray:
        """RGB pictures of any sizes -> float32 `n d`. Raises ValueError where there are none."""


@dataclass(frozen=True, eq=False)
class InceptionFeatures:
    """params: of `nn.inception.FidInception`. resizer: one of `resizing.RESIZERS`."""

    params: Any
    resizer: str = "clean"

    @classmethod
    def read(cls, path: str | Path, resizer: str = "clean") -> "InceptionFeatures":
        """Of pytorch-fid's weights as .safetensors. Raises CheckpointError; a .pth is a pickle, and is refused."""
        expected = shapes(FidInception(), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
        return cls(read_network([path], expected, what="pytorch-fid's Inception-v3"), resizer)

    @property
    def name(self) -> str:
        """See `Features`."""
        return f"Inception-v3 ({self.resizer} resizing)"

    def __call__(self, pictures: Iterable[Image.Image], batch: int = 16) -> np.ndarray:
        """See `Features`."""

        def prepared(one: Image.Image) -> np.ndarray:
            pixels = resized(np.asarray(one)[None], SIDE, self.resizer)[0]
            return pixels / 127.5 - 1 if self.resizer == "pytorch" else (pixels - 128) / 128

        return _gathered((prepared(one) for one in pictures), partial(_inception, self.params), batch)


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """config, params: of a CLIP image encoder. unit: whether embeddings are made of length 1."""

    config: ClipVisionConfig
    params: Any
    unit: bool = False

    @property
    def name(self) -> str:
        """See `Features`."""
        return f"CLIP, {self.config.projection_dim} numbers of {self.config.image_size}^2 pixels"

    def __call__(self, pictures: Iterable[Image.Image], batch: int = 16) -> np.ndarray:
        """See `Features`."""
        prepare = processor(self.config)
        found = _gathered((prepare(one) for one in pictures), partial(_embedded, self.config, self.params), batch)
        return found / np.linalg.norm(found, axis=1, keepdims=True) if self.unit else found


def processor(config: ClipVisionConfig) -> Processor:
    """CLIP's own preparation for an encoder of that size: bicubic, the middle, its mean and deviation."""
    side = config.image_size
    return Processor.from_dict({"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}})


def _gathered(prepared: Iterator[np.ndarray], run: Any, batch: int) -> np.ndarray:
    """`run` on batches of one size, the last filled up: one program."""
    found = []
    while some := list(islice(prepared, batch)):
        full = np.stack([*some, *[some[-1]] * (batch - len(some))])
        found.append(np.asarray(run(full))[: len(some)])
    if not found:
        raise ValueError("there are no pictures to take features of")
    return np.concatenate(found)


@jax.jit
def _inception(params: Any, pixels: jax.Array) -> jax.Array:
    return FidInception().apply({"params": params}, pixels)


@partial(jax.jit, static_argnums=0)
def _embedded(config: ClipVisionConfig, params: Any, pixels: jax.Array) -> jax.Array:
    return ClipVisionEncoder(config).apply({"params": params}, pixels)
