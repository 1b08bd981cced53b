"""Classifier-free guidance: one denoiser from another.

    raw = u + s (c - u)            (Ho & Salimans 2022, arXiv:2207.12598, equation 6 with s = 1 + w)   (1)
where u and c are the network's outputs without and with the prompt. Both come from one doubled batch,
[uncond, cond], as in diffusers. (1) is linear and its weights add up to 1, so it may act on the raw output of
any prediction type.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Model = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_free(model: Model, scale: jax.Array | float) -> Model:
    """The guided model, for b images, of a `model` that takes 2 b: first without the prompt, then with it.

    Args:
      model: (x [2 b, ...], t) -> raw [2 b, ...]; its own conditioning stands in the order of `pair`.
      scale: s of equation 1, a scalar or one per image [b]; 1 is no guidance.

    Returns:
      (x [b, ...], t scalar or [b]) -> raw [b, ...]. t reaches `model` as it came, doubled if it is [b].
    """
    scale = jnp.asarray(scale)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.asarray(t)
        raw = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]) if t.ndim else t)
        uncond, cond = jnp.split(raw, 2)
        s = scale.astype(raw.dtype).reshape(scale.shape + (1,) * (raw.ndim - scale.ndim)) if scale.ndim else scale
        return uncond + s * (cond - uncond)

    return guided


def pair(uncond: Any, cond: Any) -> Any:
    """The doubled batch's conditioning: leaves [b, ...] of two like trees become [2 b, ...], uncond first."""
    return jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)
