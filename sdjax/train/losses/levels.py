"""Levels: how much clean latent and how much noise a training picture holds, at the timesteps of a batch.

    x = alpha_t x_0 + sigma_t e                                                                             (1)
    variance-preserving    alpha_t^2 + sigma_t^2 = 1, alpha_t^2 of `Architecture.alphas_cumprod`            (2)
    flow                   alpha_t = 1 - t / 1000, sigma_t = t / 1000                                       (3)

(2) is Ho et al. 2020 (arXiv:2006.11239, equation 4), (3) Liu et al. 2022 (arXiv:2209.03003) with the timesteps of
Esser et al. 2024 (arXiv:2403.03206). All that depends on the level (weights, Huber's width, solvers) is made from these
two numbers, so nothing can be of another schedule than the noise: an SNR taken before the rescaling to zero terminal
SNR is a bug that trainers have had (sd-scripts#1263).

alpha_t and sigma_t are taken from float64 and rounded once: 1 - alpha_t^2 in float32 is 7e-5 off at t = 0. Between the
whole timesteps of (2) log(sigma / alpha) is linear, as in sampling.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion import noise
from sdjax.train.architecture import Architecture

FLOW_TIMESTEPS = 1000  # what t of equation 3 counts to


class Level(NamedTuple):
    """Equation 1 of b pictures: alpha `b`, sigma `b`, float32."""

    alpha: jax.Array
    sigma: jax.Array

    @property
    def snr(self) -> jax.Array:
        """alpha^2 / sigma^2, `b`: 0 where there is no signal, infinite where there is no noise."""
        return jnp.square(self.alpha / self.sigma)

    def beside(self, x: jax.Array) -> "Level":
        """The same with axes after b, so that it multiplies x `b ...`."""
        return Level(*(one.reshape(-1, *(1,) * (x.ndim - 1)) for one in self))

    def noised(self, x_0: jax.Array, e: jax.Array) -> jax.Array:
        """Equation 1 for x_0 and e `b h w c`."""
        alpha, sigma = self.beside(x_0)
        return alpha * x_0 + sigma * e


def count(architecture: Architecture) -> int:
    """T, the number of training levels."""
    return FLOW_TIMESTEPS if architecture.prediction == "flow" else len(architecture.alphas_cumprod)


def level_at(architecture: Architecture, t: jax.Array) -> Level:
    """The levels at timesteps `b`: whole ones as int32, those between and those of flow matching as float32."""
    t = jnp.asarray(t)
    if architecture.prediction == "flow":
        sigma = t.astype(jnp.float32) / FLOW_TIMESTEPS
        return Level(1 - sigma, sigma)
    alpha_bar = np.array(architecture.alphas_cumprod)
    if jnp.issubdtype(t.dtype, jnp.integer):
        return Level(*(jnp.asarray(np.sqrt(square), jnp.float32)[t] for square in (alpha_bar, 1 - alpha_bar)))
    with np.errstate(divide="ignore"):
        log_ve = jnp.asarray(np.log((1 - alpha_bar) / alpha_bar) / 2, jnp.float32)
    ve = jnp.exp(jnp.interp(t, jnp.arange(len(log_ve)), log_ve))
    alpha = jax.lax.rsqrt(1 + jnp.square(ve))
    return Level(alpha, ve * alpha)


def has_zero_terminal_snr(architecture: Architecture) -> bool:
    """Whether the last level holds no signal."""
    return architecture.prediction != "flow" and architecture.alphas_cumprod[-1] == 0


def with_zero_terminal_snr(architecture: Architecture) -> Architecture:
    """The architecture with its levels rescaled so that the last holds no signal (`noise.zero_terminal_snr`).

    What is trained so has `rescale_betas_zero_snr: true` in its scheduler's config, and is sampled with `trailing`
    timesteps. Raises ValueError where the prediction says nothing about the picture there, or has no such levels.
    """
    if architecture.prediction == "flow":
        raise ValueError("flow matching ends in pure noise as it is: leave zero terminal SNR out")
    rescaled = noise.zero_terminal_snr(np.array(architecture.alphas_cumprod))
    made = replace(architecture, alphas_cumprod=tuple(map(float, rescaled)))
    check_signal(made)
    return made


def check_signal(architecture: Architecture) -> None:
    """Raises ValueError for noise predicted at a level that holds nothing else: every answer is right there."""
    if architecture.prediction == "epsilon" and has_zero_terminal_snr(architecture):
        raise ValueError(
            "prediction 'epsilon' cannot learn levels of zero terminal SNR, where x is the noise itself; train with "
            "prediction v_prediction or sample, or leave the levels as they are"
        )
