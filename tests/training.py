"""A model for the tests of training: the tiny checkpoint's networks, with random parameters, and batches for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.diffusion.noise import Settings, noise_schedule
from sdjax.nn.shapes import expected_params
from sdjax.train.architecture import Architecture, TextTower
from tests.checkpoints import TEXT, UNET, VAE, WIDTH, random_params

LEVELS = noise_schedule(Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")).alphas_cumprod
SIZE, LENGTH = 8, 12  # of latents; of texts, in tokens


def architecture(prediction: str = "epsilon", unet: dict[str, Any] | None = None, **given: Any) -> Architecture:
    """A Stable Diffusion 1 in small. unet: what its U-Net has otherwise."""
    config = UNetConfig.from_dict({**UNET, **(unet or {})})
    text = TextTower("text_encoder", ClipTextConfig.from_dict(TEXT | dict(vocab_size=20, eos_token_id=19)))
    levels = tuple(map(float, LEVELS))
    return Architecture(config, VaeConfig.from_dict(VAE), (text,), levels, prediction, **given)


def params(of: Architecture, seed: int = 0) -> dict[str, Any]:
    """Random parameters by component, float32."""
    configs = {"unet": of.unet, "vae": of.vae} | {tower.component: tower.config for tower in of.texts}
    return jax.tree.map(jnp.asarray, random_params(expected_params(configs), np.float32, seed))


def batch(b: int, seed: int = 0) -> dict[str, jax.Array]:
    """Random latents and texts' states for b pictures."""
    rng = np.random.default_rng(seed)
    latents, context = rng.standard_normal((b, SIZE, SIZE, 4)), rng.standard_normal((b, LENGTH, WIDTH))
    return {"latents": jnp.asarray(latents, jnp.float32), "context": jnp.asarray(context, jnp.float32)}
