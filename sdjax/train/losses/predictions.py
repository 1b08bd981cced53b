"""Predictions: what a network is taught to answer to x = alpha x_0 + sigma e, and what an answer r means.

                    target              clean latents           noise                   error of x_0
    epsilon         e                   (x - sigma r) / alpha   r                       sigma^2 / alpha^2   (1)
    v_prediction    alpha e - sigma x_0 alpha x - sigma r       sigma x + alpha r       sigma^2             (2)
    sample          x_0                 r                       (x - alpha r) / sigma   1                   (3)
    flow            e - x_0             x - sigma r             x + alpha r             sigma^2             (4)

(2) is Salimans & Ho 2022 (arXiv:2202.00512, appendix D), (4) Esser et al. 2024 (arXiv:2403.03206), for alpha + sigma
= 1; sampling has the same on the host, in `sdjax.diffusion.prediction`. The last column is what a squared error of the
answer is as one of the clean latents, by which weights are compared.
"""

import jax
import jax.numpy as jnp

from sdjax.train.losses.levels import Level


def target(prediction: str, level: Level, x_0: jax.Array, e: jax.Array) -> jax.Array:
    """The first column: what the answer `b h w c` should be."""
    alpha, sigma = level.beside(x_0)
    if prediction == "epsilon":
        return e
    if prediction == "v_prediction":
        return alpha * e - sigma * x_0
    return x_0 if prediction == "sample" else e - x_0


def clean(prediction: str, level: Level, x: jax.Array, raw: jax.Array) -> jax.Array:
    """The second column: the clean latents `b h w c` that an answer means."""
    alpha, sigma = level.beside(x)
    if prediction == "epsilon":
        return (x - sigma * raw) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * raw
    return raw if prediction == "sample" else x - sigma * raw


def noise(prediction: str, level: Level, x: jax.Array, raw: jax.Array) -> jax.Array:
    """The third column: the noise `b h w c` that an answer means."""
    alpha, sigma = level.beside(x)
    if prediction == "epsilon":
        return raw
    if prediction == "v_prediction":
        return sigma * x + alpha * raw
    return (x - alpha * raw) / sigma if prediction == "sample" else x + alpha * raw


def as_clean_error(prediction: str, level: Level) -> jax.Array:
    """The last column, `b`."""
    if prediction == "epsilon":
        return 1 / level.snr
    return jnp.ones_like(level.sigma) if prediction == "sample" else jnp.square(level.sigma)
