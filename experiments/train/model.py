"""The model that a run begins from, as training needs it: parameters by component, and what its networks are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

import sdjax
from sdjax.train.architecture import Architecture
from sdjax.train.data import encoders
from sdjax.train.losses.levels import with_zero_terminal_snr

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
    def vae_encoder(self) -> tuple[encoders.EncodePixels, str]:
        """What makes moments of pixels, and its digest, which takes a look at every parameter: once."""
        return encoders.vae(self.architecture, self.params)

    @cached_property
    def text_encoder(self) -> tuple[encoders.EncodeTexts, str]:
        """What makes states of ids, and its digest."""
        return encoders.texts(self.architecture, self.params)

    @cached_property
    def unet_json(self) -> str:
        """config.json of the U-Net."""
        return self.sd.layouts["unet"].config

    @property
    def tokenizers(self) -> dict[str, Any]:
        """By text encoder."""
        return {name: one.tokenizer for name, one in self.sd.networks.spec.encoders.items()}

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
