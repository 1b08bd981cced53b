"""Perceptual terms: how different two pictures look to a network that was trained for something else.

A term is a static object, its network's parameters an argument, params["perceptual"], which no gradient goes into:

    LpipsTerm    LPIPS by VGG-16 (`nn.perceptual`): what latent diffusion's autoencoders were trained with
    ClipTerm     the same distance in the states of a CLIP image encoder in hand, where there is no VGG-16

Both have a gradient into both pictures. (A trainer that computes this term without one reports a falling number and
learns nothing from it: diffusers' train_autoencoderkl.py.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sdjax.config import ClipVisionConfig
from sdjax.images.processor import CLIP_MEAN, CLIP_STD
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.parameter import shapes
from sdjax.nn.perceptual import WIDTHS, Lpips
from sdjax.nn.resize import bilinear
from sdjax.train.network_files import read_network


class Perceptual(Protocol):
    """See above; a frozen dataclass, hashable and equal by value."""

    def __call__(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        """Pixels `b H W 3` in [-1, 1], twice -> the distance `b`, at least 0, float32."""


@dataclass(frozen=True)
class LpipsTerm:
    """LPIPS. widths: of the trunk's stages, VGG-16's own."""

    widths: tuple[int, ...] = WIDTHS

    def __call__(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        """See `Perceptual`."""
        return Lpips(self.widths).apply({"params": params}, x, y)

    def read(self, paths: Sequence[str | Path]) -> Any:
        """The parameters out of one or two .safetensors files: torchvision's VGG-16, LPIPS's weights, or both in one.

        Names are torchvision's, "features.0.weight", or those of the package lpips, "net.slice1.0.weight" and
        "lin0.model.1.weight". Raises CheckpointError.
        """
        pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return read_network(paths, shapes(Lpips(self.widths), pixels, pixels), _spellings, "LPIPS with its VGG-16")


def _spellings(name: str) -> list[str]:
    """A tensor's names in files, torchvision's first."""
    first, number, *rest = name.split(".")
    if first == "features":
        stage = 1 + sum(int(number) >= start for start in (4, 9, 16, 23))
        return [name, ".".join((f"net.slice{stage}", number, *rest))]
    return [name, name.replace("lin", "lins.", 1)]


@dataclass(frozen=True)
class ClipTerm:
    """(1/l) sum over tokens of |u(x) - u(y)|^2, u the tokens before the encoder's last layer, each of length 1.

    Pictures are resized to the encoder's size bilinearly, without antialiasing.
    """

    config: ClipVisionConfig

    def __call__(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        """See `Perceptual`."""
        side = self.config.image_size
        pixels = (bilinear(jnp.concatenate([x, y]), (side, side)) + 1) / 2
        pixels = (pixels - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)
        states = ClipVisionEncoder(self.config).apply({"params": params}, pixels, method="outputs").states
        unit = states / jnp.sqrt(jnp.sum(jnp.square(states), axis=-1, keepdims=True) + 1e-10)
        return jnp.mean(jnp.sum(jnp.square(unit[: len(x)] - unit[len(x) :]), axis=-1), axis=1)
