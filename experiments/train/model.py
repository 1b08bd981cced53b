"""The model that a run begins from, as training needs it: parameters by component, and what its networks are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sdjax.train.levels import with_zero_terminal_snr

import sdjax
from sdjax.nn.vae import Autoencoder
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import texts_of

SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint. architecture: with what the flags change of it."""

    sd: sdjax.StableDiffusion
    architecture: Architecture

    @classmethod
    def of(cls, values: Any) -> "Model":
        """Loads it. Raises ValueError, CheckpointError."""
        options = {} if values.model == "shapes" else {"revision": values.model_revision}
        sd = sdjax.load(None if values.model == "shapes" else values.model, **options)
        made = Architecture.of(sd.networks.spec, jnp.dtype(values.dtype), values.remat)
        made = replace(made, prediction=values.prediction or made.prediction)
        return cls(sd, with_zero_terminal_snr(made) if values.zero_terminal_snr else made)

    @cached_property
    def params(self) -> dict[str, Any]:
        """By component, as wide as the checkpoint has them and no narrower than what the networks compute in."""
        return {name: jax.tree.map(self._array, dict(tree)) for name, tree in self.sd.params.items()}

    @cached_property
    def unet_json(self) -> str:
        """config.json of the U-Net."""
        return self.sd.layouts["unet"].config

    @property
    def tokenizers(self) -> dict[str, Any]:
        """By text encoder."""
        return {name: one.tokenizer for name, one in self.sd.networks.spec.encoders.items()}

    def encode_pictures(self, pixels: np.ndarray) -> jax.Array:
        """Pixels `b H W 3` in [-1, 1] -> moments `b h w 2c`, in float32."""
        return _moments(self.architecture, self.params["vae"], pixels)

    def encode_texts(self, ids: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array | None]:
        """Ids by text encoder -> (states `b l d`, pooled `b d` where the U-Net takes them)."""
        towers = {tower.component: self.params[tower.component] for tower in self.architecture.texts}
        context, pooled = _texts(self.architecture, towers, dict(ids))
        return context, pooled if self.architecture.takes_pooled else None

    def with_params(self, params: Mapping[str, Any]) -> sdjax.StableDiffusion:
        """The checkpoint with other parameters, and with what the flags changed said in its scheduler's config."""
        own = {name: params[name] for name in self.sd.params}
        files = dict(self.sd.files)
        networks, scheduler = self.sd.networks, dict(self.sd.scheduler)
        said = scheduler | {"prediction_type": self.architecture.prediction}
        if self.architecture.alphas_cumprod != tuple(map(float, networks.spec.alphas_cumprod)):
            said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if said == scheduler:
            return replace(self.sd, params=own)
        files[SCHEDULER] = (json.dumps(said, indent=2) + "\n").encode()
        told = replace(networks, spec=replace(networks.spec, scheduler=said))
        return replace(self.sd, networks=told, params=own, files=files)

    def _array(self, leaf: Any) -> jax.Array:
        return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, self.architecture.dtype))


@partial(jax.jit, static_argnums=0)
def _moments(architecture: Architecture, params: Any, pixels: jax.Array) -> jax.Array:
    posterior = Autoencoder(architecture.vae).apply({"params": params}, pixels, method="encode")
    return jnp.concatenate(posterior, axis=-1)


@partial(jax.jit, static_argnums=0)
def _texts(architecture: Architecture, params: Any, ids: Any) -> tuple[jax.Array, jax.Array | None]:
    return texts_of(architecture, params, {"ids": ids})
