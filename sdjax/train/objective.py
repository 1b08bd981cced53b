"""Objective: what a training run makes smaller, as a pure function anybody's own loop can use.

    loss, metrics = objective(params, batch, key)                                                           (1)
    objective(params, batch, key) = objective.loss(params, objective.draw(batch, key))                      (2)

params: the networks' parameters by component ("unet", "text_encoder" ..), those that learn and those that do not.
`jax.grad` of (1) with respect to any of them is an ordinary gradient. An objective is a frozen dataclass: the
configuration of a run, static in its program. Arrays are arguments, and the key is all its randomness.

Equation 2 is what makes a batch the same however it is computed. `draw` sees the whole batch of a step and adds what
is random about each picture of it: its timestep, and a key of its own. `loss` is then a function of the pictures alone:
in one piece, in pieces one after the other (accumulation), or a piece on each of many devices, it is the same numbers.

A batch is a dict of arrays, every one `b ..`, among them

    latents     `b h w c`  as the U-Net sees them, that is times the VAE's scaling factor; or
    moments     `b h w 2c` mean and log-variance as the VAE's encoder gives them: every step draws its own latents; or
    pixels      `b H W 3`  in [-1, 1], which the frozen VAE encodes at every step
    ids         {text encoder: int32 `b l`}, encoded at every step; or
    context     `b l d`, the texts' states made beforehand, with `pooled` `b d` for SDXL
    empty       `b`, 1 where the caption is left out, in models that take zeros for it (SDXL); in others the ids say it
    words       {text encoder: int32 `b l`}, -1 or the number of a new word's vector that stands there (textual
                inversion); the vectors are params["words"][text encoder], `n d`
    time_ids    `b 6`, SDXL's sizes and crop: height and width of the file, top and left, height and width of the batch
    channels    `b h w k`, beside the latents (inpainting, depth)
    weights     `b h w 1`, where the error counts, of mean 1 in each picture
    weight      `b`, how much each picture counts, 1 where there is none
    preserved   `b`, 1 for a picture that the model shall go on answering as before (see `preserving`)
    valid       `b`, 0 for a picture that only fills the batch up, else 1

and of what `draw` adds, which a batch may have already (a comparison with another trainer does):

    keys        `b`, a key for each picture, from which `noise` and all else of it is drawn
    timesteps   int32 `b`
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Batch = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]  # scalars, means over the pictures that count; "count": how many these are


class Objective(Protocol):
    """See above; a frozen dataclass, hashable and equal by value."""

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch of a whole step with everything random about it, each leaf `b ..`."""

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The mean over the pictures of a batch, or of a piece of one, that `draw` has seen; and what to report."""

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 2."""


def size(batch: Batch) -> int:
    """b, the number of pictures in a batch."""
    return len(jax.tree.leaves(batch)[0])


def picture_keys(key: jax.Array, b: int) -> jax.Array:
    """A key `b` for each picture of a batch, which does not depend on b."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(b))


def mean(each: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(the mean of `b` errors over the pictures that are valid, by their weights; how many are valid).

    The weights are not divided by: a batch in which they are of mean 1 has the usual scale.
    """
    valid = batch["valid"].astype(jnp.float32) if "valid" in batch else jnp.ones_like(each)
    count = jnp.sum(valid)
    return jnp.sum(each * valid * batch.get("weight", 1.0)) / jnp.maximum(count, 1.0), count


def standard_normal(keys: jax.Array, name: int, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise `b *shape`, each picture's from its own key; name: which of a picture's draws it is."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, name), shape))(keys)
