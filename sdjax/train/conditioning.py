"""What the U-Net is told and shown in training: latents and conditions of a batch (see `objective`), differentiable."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.nn.clip import NewWords
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.vae import Autoencoder, Posterior
from sdjax.train.architecture import Architecture, TextTower
from sdjax.train.objective import Batch, standard_normal

POSTERIOR = 1  # names of a picture's draws; 0 is its noise


def latents_of(architecture: Architecture, params: Mapping[str, Any], batch: Batch) -> jax.Array:
    """The clean latents `b h w c` of a batch, float32, at the U-Net's scale; no gradient goes into the VAE.

    Raises ValueError for a batch without any.
    """
    if "latents" in batch:
        return batch["latents"].astype(jnp.float32)
    if "moments" in batch:
        mean, log_variance = jnp.split(batch["moments"].astype(jnp.float32), 2, axis=-1)
        posterior = Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))
    elif "pixels" in batch:
        vae = Autoencoder(architecture.vae)  # float32: SDXL's overflows in half precision
        posterior = vae.apply({"params": params["vae"]}, batch["pixels"], method="encode")
    else:
        raise ValueError("a batch has latents, moments or pixels; this one has none of them")
    drawn = posterior.sample(standard_normal(batch["keys"], POSTERIOR, posterior.mean.shape[1:]))
    return jax.lax.stop_gradient(drawn * architecture.vae.scaling_factor)


def conditions_of(architecture: Architecture, params: Mapping[str, Any], batch: Batch) -> Conditions:
    """What the U-Net is told beside x and t; texts given as ids are encoded, with a gradient into their encoders."""
    context, pooled = texts_of(architecture, params, batch)
    added = Added(pooled, batch["time_ids"].astype(jnp.float32)) if architecture.takes_pooled else None
    channels = batch["channels"].astype(jnp.float32) if "channels" in batch else None
    return Conditions(context, added, channels=channels)


def unprompted(architecture: Architecture, params: Mapping[str, Any], batch: Batch) -> Conditions:
    """The same without a text: zeros for models that take them, else of batch["unprompted"] (see `consistency`).

    Raises ValueError where there is neither.
    """
    if "unprompted" in batch:
        return conditions_of(architecture, params, {**batch, **batch["unprompted"]})
    if not architecture.zeros_for_empty:
        raise ValueError(
            "guidance compares with the empty text, and for this model that is no zeros: give the batch its ids or "
            "states, as unprompted={'context': ..}"
        )
    told = conditions_of(architecture, params, batch)
    added = None if told.added is None else Added(jnp.zeros_like(told.added.pooled), told.added.time_ids)
    return replace(told, context=jax.tree.map(jnp.zeros_like, told.context), added=added)


def texts_of(architecture: Architecture, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Any]:
    """Contexts `b l d`, and pooled states `b d` where the U-Net takes them."""
    if "ids" not in batch:
        pooled = batch["pooled"].astype(jnp.float32) if architecture.takes_pooled else None
        return batch["context"].astype(jnp.float32), pooled
    encoded = [_encoded(architecture, tower, params, batch) for tower in architecture.texts]
    context, pooled = jnp.concatenate([states for states, _ in encoded], axis=-1), encoded[-1][1]
    if "empty" in batch:  # a caption that is left out is zeros, not the empty text
        here = 1.0 - batch["empty"].astype(jnp.float32)
        context, pooled = context * here[:, None, None], pooled * here[:, None]
    return context, pooled


def _encoded(
    architecture: Architecture, tower: TextTower, params: Mapping[str, Any], batch: Batch
) -> tuple[jax.Array, jax.Array]:
    ids, new = batch["ids"][tower.component], None
    if "words" in batch:
        which = batch["words"][tower.component]
        new = NewWords(which >= 0, params["words"][tower.component][jnp.maximum(which, 0)])
    return tower(params[tower.component], ids, new, architecture.dtype)
