"""Denoising: noise a latent, predict the noise, and how far off the prediction is; the loss of every diffusion model.

    x = alpha_t x_0 + sigma_t e,     loss = mean_b w(t) mean_hwc |f(x, t, c) - target(x_0, e, t)|^2         (1)

(Ho et al. 2020, arXiv:2006.11239, equation 14, for the noise as target and w = 1.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.nn.conditioning import Conditions
from sdjax.nn.injections import NOTHING, Injections
from sdjax.nn.unet import UNet
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of, latents_of
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size, standard_normal

NOISE = 0  # of a picture's draws


@dataclass(frozen=True)
class Denoising:
    """Equation 1 for the U-Net of a model."""

    architecture: Architecture

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` and `timesteps` where the batch has none."""
        b = size(batch)
        drawn = {"keys": picture_keys(key, b)} | dict(batch)
        if "timesteps" not in drawn:
            times = jax.random.fold_in(key, b)
            drawn["timesteps"] = jax.random.randint(times, (b,), 0, len(self.architecture.alphas_cumprod))
        return drawn

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        x_0, t = latents_of(self.architecture, params, batch), batch["timesteps"]
        noise = batch["noise"] if "noise" in batch else standard_normal(batch["keys"], NOISE, x_0.shape[1:])
        alpha_bar = jnp.asarray(self.architecture.alphas_cumprod, jnp.float32)[t][:, None, None, None]
        alpha, sigma = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
        x, conditions = alpha * x_0 + sigma * noise, conditions_of(self.architecture, params, batch)
        predicted = self.predict(params, x, t, conditions, self.injected(params, batch, x, t, conditions))
        target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0}
        square = jnp.square(predicted - target[self.architecture.prediction]) * batch.get("weights", 1.0)
        value, count = mean(jnp.mean(square, axis=(1, 2, 3)), batch)
        return value, {"loss": value, "count": count}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def predict(
        self, params: Mapping[str, Any], x: jax.Array, t: jax.Array, conditions: Conditions, injected: Injections
    ) -> jax.Array:
        """The U-Net's answer `b h w c` to x `b h w c` at the timesteps `b`."""
        unet = UNet(self.architecture.unet, self.architecture.dtype, self.architecture.remat)
        return unet.apply({"params": params["unet"]}, x, t.astype(jnp.float32), conditions, injected)

    def injected(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, conditions: Conditions
    ) -> Injections:
        """What other networks add inside the U-Net; nothing here (see `methods.controlnet`, `methods.ip_adapter`)."""
        return NOTHING
