"""Classifier-free guidance: away from the answer without the prompt, beyond the answer with it.

    raw = u + s (c - u)  =  c + (s - 1) (c - u)                                                         (1)
                                (Ho & Salimans 2022, arXiv:2207.12598, equation 6 with s = 1 + w)
where u and c are the network's outputs without and with the prompt. (1) is linear and its weights add up to 1, so it
may act on the raw output of any prediction type; its second form is exactly c at s = 1. A large s spreads the output;
rescaling takes it back by a share phi:
    raw' = phi raw std(c) / std(raw) + (1 - phi) raw    (Lin et al. 2023, arXiv:2305.08891, equations 15, 16)    (2)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.diffusion.guiders.guider import PROMPT, UNGUIDED, Strength
from sdjax.diffusion.row import append_dims
from sdjax.diffusion.table import Table


@dataclass(frozen=True)
class ClassifierFree:
    """Equations 1 and 2, with one prompt."""

    branches = (UNGUIDED, PROMPT)
    prompt_alone = True

    def init(self, x: jax.Array) -> None:
        """It keeps nothing."""

    def __call__(
        self, answers: Sequence[jax.Array], x: jax.Array, row: Table | None, data: Strength, state: None
    ) -> tuple[jax.Array, jax.Array, None]:
        """See `Guider`."""
        uncond, cond = answers
        return combine(uncond, cond, data.scale, data.rescale), uncond, state


def combine(
    uncond: jax.Array,
    cond: jax.Array,
    scale: jax.Array | float,
    rescale: jax.Array | float | None = None,
    like: jax.Array | None = None,
) -> jax.Array:
    """Equations 1 and 2: u and c [b, ...], scale and rescale scalars or [b] -> raw [b, ...].

    like: whose spread (2) goes back to; None is c.
    """
    s = append_dims(jnp.asarray(scale, cond.dtype), cond)
    raw = cond + (s - 1) * (cond - uncond)
    if rescale is None:
        return raw
    phi = jnp.asarray(rescale, cond.dtype)
    return lax.cond(jnp.any(phi > 0), _rescaled, lambda raw, cond, phi: raw, raw, cond if like is None else like, phi)


def _rescaled(raw: jax.Array, cond: jax.Array, phi: jax.Array) -> jax.Array:
    """Equation 2; standard deviations over all but the first axis. An output without any spread stays as it is."""
    over = tuple(range(1, raw.ndim))
    spread = jnp.var(raw, axis=over)
    ratio = jnp.sqrt(jnp.var(cond, axis=over) / jnp.where(spread > 0, spread, 1))
    return raw * append_dims(1 + phi * (jnp.where(spread > 0, ratio, 1) - 1), raw)
