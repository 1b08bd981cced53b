"""Encoders: the frozen networks of a model as functions of a batch, for `moments` and `states` to be made with.

The VAE computes in float32 whatever the others do: SDXL's overflows in half precision, and what is not finite would be
kept for good.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn.vae import Autoencoder
from sdjax.train.architecture import Architecture
from sdjax.train.data.moments import Encode as EncodePixels
from sdjax.train.data.states import Encode as EncodeTexts
from sdjax.train.data.store import digest


def vae(architecture: Architecture, params: Mapping[str, Any]) -> tuple[EncodePixels, str]:
    """(pixels `b H W 3` -> moments `b h w 2c`, the digest of the VAE). params: by component."""

    @jax.jit
    def moments(own: Any, pixels: jax.Array) -> jax.Array:
        posterior = Autoencoder(architecture.vae).apply({"params": own}, pixels, method="encode")
        return jnp.concatenate([posterior.mean, posterior.log_variance], axis=-1)

    return lambda pixels: moments(params["vae"], pixels), digest(params["vae"])


def texts(architecture: Architecture, params: Mapping[str, Any]) -> tuple[EncodeTexts, str]:
    """({text encoder: ids `b l`} -> (states `b l d`, pooled `b d` or None), the digest of the text encoders)."""
    towers = {tower.component: params[tower.component] for tower in architecture.texts}

    @jax.jit
    def states(own: Any, ids: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        found = [
            tower(own[tower.component], ids[tower.component], dtype=architecture.dtype) for tower in architecture.texts
        ]
        context = jnp.concatenate([context for context, _ in found], axis=-1)
        return context, found[-1][1] if architecture.takes_pooled else None

    def encode(ids: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array | None]:
        return states(towers, dict(ids))

    layers = [[tower.component, tower.layer, tower.final_norm] for tower in architecture.texts]
    return encode, f"{digest(towers)} {layers}"
