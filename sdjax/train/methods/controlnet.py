"""ControlNet: half a U-Net learns to draw what a map shows; the U-Net stays as it is (Zhang et al. 2023,
arXiv:2302.05543).

It begins as the U-Net's own way down behind convolutions of zeros (`nn.controlnet.init_from_unet`), so the first step's
loss is the U-Net's own. A batch has, beside what every batch has (see `objective`),

    map     `b H W 3` in [0, 1], of the picture's own size, cropped and mirrored with it

For long nothing is seen of the maps, and then, within some hundred steps, they are followed: "sudden convergence", in
section 3.3 of the paper. Captions left out in half of the pictures make the net tell from the map what it shows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config.controlnet import ControlNetConfig, config_beside
from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions
from sdjax.nn.controlnet import HINT, ControlNet, HintEmbedding, init_from_unet
from sdjax.nn.injections import Injections
from sdjax.train.losses.denoising import Denoising
from sdjax.train.objective import Batch
from sdjax.weights import default_layout, save_component

COMPONENT = "controlnet"


@dataclass(frozen=True)
class ControlDenoising(Denoising):
    """The U-Net's own loss, with a ControlNet beside it that looks at each picture's map."""

    control: ControlNetConfig | None = None

    def injected(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, conditions: Conditions
    ) -> Injections:
        """See `Denoising`. Raises ValueError for a batch without maps."""
        if "map" not in batch:
            raise ValueError("a ControlNet learns from pictures and their maps; this batch has none under 'map'")
        assert self.control is not None
        rest = {name: module for name, module in params[COMPONENT].items() if name != HINT}
        *skips, middle = ControlNet(self.control, self.architecture.dtype).apply(
            {"params": rest}, x, t.astype(jnp.float32), conditions, self.hint(params, batch)
        )
        return Injections(skips=tuple(skips), middle=middle)

    def hint(self, params: Mapping[str, Any], batch: Batch) -> jax.Array:
        """What the net's convolutions make of the maps, `b h w d`: the costly part of it, since they are large."""
        assert self.control is not None
        module = HintEmbedding(self.control, self.architecture.dtype)
        return module.apply({"params": params[COMPONENT][HINT]}, batch["map"].astype(jnp.float32))


@dataclass(frozen=True)
class ControlNetTraining:
    """All of a ControlNet learns, and nothing else.

    Attributes:
      unet_json: config.json of the U-Net beside which it learns, as text.
      widths: of its convolutions over the map, of which all but the first halve it: as many as the VAE halves pictures.
    """

    unet_json: str
    widths: tuple[int, ...] = (16, 32, 96, 256)

    @cached_property
    def json(self) -> dict[str, Any]:
        """config.json of the net, as diffusers reads it."""
        return config_beside(json.loads(self.unet_json), self.widths)

    @cached_property
    def config(self) -> ControlNetConfig:
        """Raises ConfigError."""
        return ControlNetConfig.from_dict(self.json)

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`. Where `params` has a net already, that one goes on learning."""
        begun = params[COMPONENT] if COMPONENT in params else init_from_unet(params["unet"], self.config, key)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(begun))

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        return {**params, COMPONENT: trainable}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`: a folder in diffusers' layout, float32, which `sdjax.load_controlnet` opens."""
        del params
        net = jax.tree.map(np.asarray, trainable)
        layout = default_layout(net, self.json)
        file = next(iter(layout.metadata))
        save_component(folder / COMPONENT, net, layout.told(file, metadata))
        return folder / COMPONENT
