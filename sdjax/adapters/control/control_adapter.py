"""ControlAdapter: a network that steers a model by a picture, as it was read from its files."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdjax.adapters.control.kind import TITLES
from sdjax.adapters.control.weights import Weights
from sdjax.adapters.families import WIDTHS
from sdjax.config import UNetConfig
from sdjax.config.controlnet import ControlNetConfig
from sdjax.config.lllite import STRIDES, LLLiteConfig
from sdjax.config.t2i_adapter import XL, T2IAdapterConfig
from sdjax.core import tree
from sdjax.nn.union import MODES

_SKIPPED = 1 << 20  # bytes at a file's beginning that its hash leaves out
LLLITE_PIXELS = math.prod(STRIDES[1])
ControlConfig = ControlNetConfig | T2IAdapterConfig | LLLiteConfig


@dataclass(frozen=True, eq=False, repr=False)
class ControlAdapter:
    """A control network.

    Attributes:
      name: what messages and settings call it. kind: "controlnet", "union", "control_lora", "t2i" or "lllite".
      config: of the network that it is (`nn.controlnet`, `nn.t2i_adapter`, `nn.lllite`).
      weights: what its files hold. metadata: of the file. source: the file, of several the first.
    """

    name: str
    kind: str
    config: ControlConfig
    weights: Weights = field(repr=False)
    metadata: Mapping[str, str]
    source: Path

    def params(self, unet: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of its network, a nested dict of arrays.

        unet: the parameters of the U-Net that it is used with, as they are stored: a difference file and a Control-LoRA
        add to them, and then each call makes its own. Others lie in the file. Raises ValueError as `check` does.
        """
        return self.weights.of(unet, self.title)

    @property
    def needs_unet(self) -> bool:
        """Whether its parameters are made of the U-Net's."""
        return bool(self.weights.changes)

    def check(self, unet: UNetConfig, expected: Mapping[str, Any], model: str) -> None:
        """Raises ValueError where it is for another family of models than this U-Net's.

        expected: the U-Net's parameters, or their shapes. model: its name.
        """
        if told := self._misfit(unet, expected, model):
            raise ValueError(f"{self.title} {told}")

    def check_size(self, height: int, width: int, factor: int, name: str) -> None:
        """Raises ValueError where what it makes of a map of so many pixels has other sizes than the U-Net's levels.

        factor: pixels of the model's pictures to one latent. name: what messages call it.
        """
        pixels, multiple = self._pixels
        if pixels != factor:
            raise ValueError(
                f"{name} is for models of {pixels} pixels to a latent, each way, and this one has {factor}"
            )
        if height % multiple or width % multiple:
            raise ValueError(
                f"{name}: a {TITLES[self.kind]} of this kind needs a height and width that are multiples of "
                f"{multiple}, and this picture is {width} x {height}"
            )

    @property
    def _pixels(self) -> tuple[int, int]:
        """How many pixels it takes for one latent, and by what it divides a side."""
        config = self.config
        if isinstance(config, ControlNetConfig):
            return config.factor, config.factor
        if isinstance(config, T2IAdapterConfig):
            return config.downscale_factor // (2 if config.adapter_type == XL else 1), config.downscale_factor
        return LLLITE_PIXELS, max(math.prod(STRIDES[one.depth]) for one in config.modules)

    def _misfit(self, unet: UNetConfig, expected: Mapping[str, Any], model: str) -> str | None:
        if isinstance(self.config, ControlNetConfig):
            return _other_unet(self.config.unet, unet, model)
        if isinstance(self.config, T2IAdapterConfig):
            return _other_features(self.config, unet, model)
        return _other_layers(self.config, expected, model)

    @property
    def outputs(self) -> int:
        """How many things it adds to the U-Net, each with a strength of its own."""
        return self.config.outputs

    @property
    def channels(self) -> int:
        """Of the picture that it looks at."""
        config = self.config
        return config.conditioning_channels if isinstance(config, ControlNetConfig) else config.in_channels

    @property
    def pooled(self) -> bool:
        """Whether what it adds has no places (shuffle), and is meant for the prompt's answer alone."""
        return isinstance(self.config, ControlNetConfig) and self.config.global_pool_conditions

    @property
    def kinds(self) -> dict[str, int]:
        """Of a Union the number of every name that a kind of map has; else none."""
        return {name: number for number, names in enumerate(self.modes) for name in names}

    @property
    def modes(self) -> tuple[tuple[str, ...], ...]:
        """Of a Union the names of the kinds of maps that it knows, by number; else none."""
        count = self.config.num_control_type if isinstance(self.config, ControlNetConfig) else None
        return MODES[: count or 0]

    @property
    def title(self) -> str:
        """What it is and its name, for messages."""
        return f"{TITLES[self.kind]} {self.name!r}"

    @cached_property
    def short_hash(self) -> str:
        """The 8 digits by which A1111's extension tells it: of 64 KiB of its file from the first MiB on.

        A file that ends before that is told by all of its bytes. Source: AUTOMATIC1111's webui, modules/sd_models.py,
        model_hash.
        """
        with open(self.source, "rb") as file:
            file.seek(_SKIPPED if self.source.stat().st_size > _SKIPPED else 0)
            return hashlib.sha256(file.read(1 << 16 if file.tell() else _SKIPPED)).hexdigest()[:8]

    def __repr__(self) -> str:
        """What it is, what for, and its size, in one line."""
        return f"<ControlAdapter {self.name!r}: {TITLES[self.kind]} for {self.family}>"

    @property
    def family(self) -> str:
        """Of models that it is for, in words."""
        config = self.config
        if isinstance(config, ControlNetConfig):
            return _told_unet(config.unet)
        if isinstance(config, T2IAdapterConfig):
            return "SDXL" if config.adapter_type == XL else "SD 1.x or 2.x"
        return "SDXL"


def _told_unet(unet: UNetConfig) -> str:
    """The family of a U-Net, and what tells it."""
    family = WIDTHS.get(unet.cross_attention_dim, "a model of its own kind")
    return f"{family} (text {unet.cross_attention_dim} wide, channels {', '.join(map(str, unet.block_out_channels))})"


def _other_unet(own: UNetConfig, unet: UNetConfig, model: str) -> str | None:
    """What is wrong where a ControlNet copied another U-Net than this one."""

    for mine, theirs in zip(_facts(own), _facts(unet), strict=True):
        if mine != theirs:
            return f"is for {mine}, and {model} is {theirs}: take one for {_short_family(unet)}"
    if own.in_channels != unet.out_channels:
        return f"takes in {own.in_channels} channels of latents, and {model} has {unet.out_channels}"
    return None


def _facts(unet: UNetConfig) -> tuple[str, ...]:
    """In words what a ControlNet has from the U-Net that it copied: the family, and one thing more in each."""
    told, middle = _told_unet(unet), "no middle" if unet.mid_block_type is None else "a middle"
    pooled = f"{unet.addition_embed_type} of {unet.projection_class_embeddings_input_dim} beside the time"
    return told, *(f"{told}, {more}" for more in (f"{list(unet.layers_per_block)} resnets a level", pooled, middle))


def _short_family(unet: UNetConfig) -> str:
    return WIDTHS.get(unet.cross_attention_dim, "that very model")


def _other_features(config: T2IAdapterConfig, unet: UNetConfig, model: str) -> str | None:
    """What is wrong where a T2I-Adapter's features are none that this U-Net takes in."""
    xl, widths = config.adapter_type == XL, unet.block_out_channels
    attends = unet.down_block_types[0] == "CrossAttnDownBlock2D"
    if xl == (unet.levels == 3) and xl != attends and config.channels == (*widths, *widths[-1:] * xl):
        return None
    mine = f"a U-Net of {3 if xl else 4} levels whose features are {', '.join(map(str, config.channels))} wide"
    theirs = f"{unet.levels} levels, {', '.join(map(str, widths))} wide"
    if xl == attends:
        mine, theirs = (f"{one}, the first {'with' if own else 'without'} attention"
                        for one, own in ((mine, not xl), (theirs, attends)))  # fmt: skip
    return f"is for {mine}, and {model} has {theirs}"


def _other_layers(config: LLLiteConfig, expected: Mapping[str, Any], model: str) -> str | None:
    """What is wrong where an LLLite stands before layers that this U-Net does not have."""
    held = tree.flatten(expected)
    for one in config.modules:
        kernel = held.get((*one.path, "kernel"))
        if kernel is None or kernel.shape[0] != one.features:
            found = "no such layer" if kernel is None else f"{kernel.shape[0]} there"
            return f"is for SDXL: it takes in {one.features} channels at {'.'.join(one.path)}, and {model} has {found}"
    return None
