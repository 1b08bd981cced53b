"""An autoencoder of its own, to be put in the place of a checkpoint's: better colours, no overflow in float16.

It comes as a folder in the diffusers layout, or as a single file by diffusers' names or the original ones, whatever
stands before them; a whole checkpoint in one file will do.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.config import VaeConfig
from sdjax.core import tree
from sdjax.core.errors import CheckpointError
from sdjax.weights import identify, ldm, names
from sdjax.weights.checkpoint import Checkpoint, Json
from sdjax.weights.files import Header, read_json, read_single_header
from sdjax.weights.ldm import VAE_PREFIX
from sdjax.weights.links import home_of, within
from sdjax.weights.load import read_component
from sdjax.weights.names import Layout
from sdjax.weights.save import default_layout
from sdjax.weights.spelling import collect, is_averaged
from sdjax.weights.tensors import ErrorContext, on_device, read_tensors

_FIRST = f"{VAE_PREFIX}encoder.conv_in.weight"


@dataclass(frozen=True, eq=False)
class OpenVae:
    """An open autoencoder: a folder with a config of its own, or a file, for which the checkpoint's has to do.

    Two autoencoders that differ in nothing but what their latents mean have the same tensors: a file of SD 1.x's in an
    SDXL checkpoint is not noticed.
    """

    path: Path
    config: Json | None = None
    header: Header | None = None
    variant: str | None = None

    def into(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with this autoencoder for its own."""
        config = self.config or checkpoint.configs["vae"]

        notes = tuple(note for note in checkpoint.notes if "holds no VAE" not in note)
        return replace(checkpoint.with_network("vae", config, partial(self.read, config)), notes=notes)

    def read(
        self,
        config: Json,
        expected: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        place: Callable[[np.ndarray], Any] = on_device,
    ) -> tuple[dict[str, Any], Layout]:
        """The weights, for a network with this config. Raises CheckpointError."""
        if self.header is None:
            return read_component(self.path, expected, dtype, place, variant=self.variant)
        read = VaeConfig.from_dict(config)
        modules = ldm.vae_modules(read)
        tensors, _ = collect(self.header, _names(self.header, ldm.vae_words(read)))

        def places(path: tree.Path, shape: tree.Shape) -> list[names.Place]:
            return [ldm.place(path, shape, modules, VAE_PREFIX)]

        blame = ErrorContext(
            f"{self.path} does not hold the VAE of this checkpoint's config",
            "choose a VAE made for this family of models",
        )
        params, found = read_tensors([replace(self.header, tensors=tensors)], expected, places, blame, dtype, place)
        return params, default_layout(params, config, {path: one.dtype for path, one in found.items()})


def open_vae(path: str | os.PathLike[str], variant: str | None = None) -> OpenVae:
    """An autoencoder from a folder (its own, or a checkpoint's, whose vae/ is taken) or a .safetensors file.

    Raises CheckpointError where there is none; the message says what the file is.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        folder = path / "vae" if (path / "vae").is_dir() else path
        return OpenVae(folder, config=read_json(within(folder / "config.json", home_of(path))), variant=variant)
    header = read_single_header(path)
    found = _names(header, {})
    if found and _FIRST not in found.values():
        raise CheckpointError(
            f"{path} holds a part of an autoencoder, without encoder.conv_in.weight; take a whole one"
        )
    if not found:
        identify.refuse(header)
    return OpenVae(path, header=header)


def _names(header: Header, words: ldm.Modules) -> dict[str, str]:
    """The original names of the autoencoder's tensors in a file, by those that they have there.

    Averages count only where there is nothing else.
    """
    plain = [name for name in header.tensors if not is_averaged(name)]
    found = {name: ldm.vae_name(name, words) for name in plain or header.tensors}
    return {name: new for name, new in found.items() if new is not None}
