"""ImagePromptAdapter: an IP-Adapter's file and the image encoder that it looks through (Ye et al. 2023,
arXiv:2308.06721).

It changes no weight of a model: it makes tokens of a picture, and has layers of its own that make keys and values of
them beside the text's (`nn.image_prompt`). So it is read by itself, and tells which models it is for by its widths and
by how many layers it has.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from sdjax.adapters import image_encoder as encoders
from sdjax.adapters.families import CUSTOM, WIDTHS, described
from sdjax.adapters.image_encoder import EncoderFolder, ImageEncoder
from sdjax.adapters.image_prompt_names import (
    ATTENTION,
    PROJECTION,
    by_path,
    check_kind,
    expected,
    places,
    projection_of,
)
from sdjax.adapters.locate import locate
from sdjax.config.image_prompt import ImagePromptConfig
from sdjax.core.errors import CheckpointError
from sdjax.core.json_fields import ConfigError
from sdjax.core.short import short
from sdjax.core.tree import modules_named
from sdjax.nn.image_prompt import attention_paths
from sdjax.weights.files import Header, read_single_header
from sdjax.weights.tensors import ErrorContext, in_the_file, read_tensors


@dataclass(frozen=True, eq=False, repr=False)
class ImagePromptAdapter:
    """An IP-Adapter as it was read.

    Attributes:
      name: what messages and settings call it. config: of its projection.
      params: its parameters, which stay in the file: "image_proj", and "ip_adapter" by the file's ids, whose kernels
        are `d c`. `bind` has the latter by the paths of a U-Net.
      path: its file. folder: of its image encoder.
    """

    name: str
    config: ImagePromptConfig
    params: Mapping[str, Any] = field(repr=False)
    path: Path
    folder: EncoderFolder

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Its image encoder, read when it is first asked for. Raises CheckpointError."""
        return self.folder.read()

    @cached_property
    def short_hash(self) -> str:
        """The first 12 digits of the SHA-256 of all bytes that follow its file's header, as A1111 hashes adapters."""
        with open(self.path, "rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]

    @property
    def layers(self) -> int:
        """How many cross-attentions it has layers for."""
        return len(self.params[ATTENTION])

    @property
    def family(self) -> str:
        """Of models that it is for."""
        return WIDTHS.get(self.config.cross_attention_dim, CUSTOM)

    def check(self, unet: Mapping[str, Any], model: str = "this model") -> None:
        """Raises ValueError where it is for another family than the U-Net of these parameters; `model` is its name."""
        there = dict(modules_named(unet, ("attn2",)))
        paths = attention_paths(unet)
        width = there[paths[0]]["to_k"]["kernel"].shape[0] if paths else None
        if width != self.config.cross_attention_dim:
            raise ValueError(
                f"image prompt {self.name!r} is for {described(self.family, self.config.cross_attention_dim)}, and "
                f"{model} is {described(WIDTHS.get(width or 0, CUSTOM), width)}: take one for its family"
            )
        if len(paths) != self.layers:
            raise ValueError(
                f"image prompt {self.name!r} has layers for {self.layers} cross-attentions, and {model} has "
                f"{len(paths)}; SD 1.x and 2.x have 16, SDXL has 70"
            )
        own = by_path(self.params[ATTENTION], paths)
        for path in paths:
            wide, wanted = (one.shape[1] for one in (own[path]["to_k_ip"]["kernel"], there[path]["to_k"]["kernel"]))
            if wide != wanted:
                raise ValueError(
                    f"image prompt {self.name!r} is {wide} wide where {path} of {model} is {wanted}: it is for another "
                    "kind of U-Net"
                )

    def bind(self, unet: Mapping[str, Any], model: str = "this model") -> dict[str, Any]:
        """Its parameters for a U-Net of these parameters, or shapes: {"image_proj": .., "attention": by path}.

        What `nn.image_prompt.ImagePromptEncoder` and `image_keys_values` take. Raises ValueError as `check` does.
        """
        self.check(unet, model)
        attention = by_path(self.params[ATTENTION], attention_paths(unet))
        return {PROJECTION: self.params[PROJECTION], "attention": attention}

    def __repr__(self) -> str:
        """Kind, family, layers, tokens and MB, in one line."""
        tokens = "" if self.config.tokens is None else f", {self.config.tokens} tokens"
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(self.params))) / 1e6
        return (
            f"<ImagePromptAdapter {self.name!r}: {self.config.kind} for {described(self.family)}, {self.layers} layers"
            f"{tokens}, {size:.1f} MB>"
        )


def load_image_prompt(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    image_encoder: str | os.PathLike[str] | None = None,
    revision: str = "main",
) -> ImagePromptAdapter:
    """An IP-Adapter from a file, for `generate(image_prompt=[(adapter, picture, scale)])`.

    Args:
      source: a .safetensors file, a folder that holds one, or a Hub id as
        `h94/IP-Adapter/models/ip-adapter_sd15.safetensors`.
      name: what messages and settings call it; by default the file's name without its ending.
      image_encoder: the folder of the image encoder (config.json and model.safetensors, as transformers'
        CLIPVisionModelWithProjection is saved), or a Hub id as `h94/IP-Adapter/models/image_encoder`; by default the
        one that lies beside the adapter (see `image_encoder`).
      revision: of a Hub id, and of the encoder beside it.

    Raises:
      CheckpointError: whatever is wrong with either, in one message that names the file and the tensor.
    """
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"name must be a text, not {short(name)}")
    located = locate(source, revision)
    header = read_single_header(located.path)
    check_kind(header)
    try:
        config = ImagePromptConfig.from_shapes(projection_of(header), f"{header.path}: {PROJECTION}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    params = _read(header, config)
    called = name or located.name
    if image_encoder is None:
        folder = encoders.beside(located, revision, config, called)
    else:
        folder = encoders.given(image_encoder, config, called)
    return ImagePromptAdapter(called, config, params, header.path, folder)


def _read(header: Header, config: ImagePromptConfig) -> Mapping[str, Any]:
    """The parameters, each in its place, none missing, none left over, all finite."""
    blame = ErrorContext(
        f"{header.path} is no whole IP-Adapter of the kind {config.kind!r}, as its names suggest",
        "take the file as its author published it, or download it again",
    )
    return read_tensors([header], expected(header, config), places(config.kind), blame, place=in_the_file)[0]
