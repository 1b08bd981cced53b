"""How well an autoencoder gives pictures back, and how large its latents are.

    PSNR = 10 log10(255^2 / mean (u - u')^2)  of 8-bit values u, u', in decibels; 6 more is half the error          (1)
    scaling factor = 1 / sqrt(E z^2 - (E z)^2)  over all numbers of the latents z of many pictures                 (2)

Equation 2 is Rombach et al.'s (arXiv:2112.10752, appendix G), who took one batch for it; .18215 came of that. A U-Net
sees latents times this factor, of about unit variance, for which the noise levels were chosen.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from sdjax.config import VaeConfig
from sdjax.images.pixels import to_uint8
from sdjax.nn.vae import Autoencoder


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Equation 1 of each picture: uint8 `b H W 3` both -> `b`, infinite where they are the same. Raises ValueError."""
    if first.shape != second.shape or first.dtype != np.uint8 or second.dtype != np.uint8:
        told = " and ".join(f"{one.dtype} {list(one.shape)}" for one in (first, second))
        raise ValueError(f"PSNR is of two uint8 arrays of one shape, not {told}")
    error = np.square(first.astype(np.float64) - second).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def reconstructed(config: VaeConfig, params: Any, pixels: np.ndarray) -> np.ndarray:
    """Pixels `b H W 3` in [-1, 1] through the VAE and back, its mean taken: uint8."""
    return to_uint8(np.asarray(_back(config, params, pixels)))


def scaling_factor(config: VaeConfig, params: Any, batches: Iterable[Mapping[str, Any]]) -> float:
    """Equation 2 of batches with `pixels`, by the encoder's means and variances. Raises ValueError for none."""
    count, total, square = 0, 0.0, 0.0
    for batch in batches:
        mean, log_variance = (np.asarray(part, np.float64) for part in _posterior(config, params, batch["pixels"]))
        count += mean.size
        total += mean.sum()
        square += (mean**2 + np.exp(log_variance)).sum()
    variance = square / max(count, 1) - (total / max(count, 1)) ** 2
    if not variance > 0:
        raise ValueError("latents of no pictures, or all the same, have no scale")
    return float(variance**-0.5)


@partial(jax.jit, static_argnums=0)
def _back(config: VaeConfig, params: Any, pixels: jax.Array) -> jax.Array:
    return Autoencoder(config).apply({"params": params}, pixels)


@partial(jax.jit, static_argnums=0)
def _posterior(config: VaeConfig, params: Any, pixels: jax.Array) -> Any:
    return Autoencoder(config).apply({"params": params}, pixels, method="encode")
