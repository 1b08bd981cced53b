"""Autoencoding: a picture through the VAE and back, and how far off what comes out is.

    z = m(x) + s(x) e,    y = decode(z),        m and log s^2 being what the encoder says of x                     (1)
    loss = mean_b [ a |y - x| + b (y - x)^2 + c (|d_w (y - x)| + |d_h (y - x)|) + p P(x, y) + k KL ]             (2)
    KL = (m^2 + s^2 - 1 - log s^2) / 2                                                                         (3)

(Kingma & Welling 2014, arXiv:1312.6114, equations 7 and 10.) In (2) each of a picture's terms is its mean over pixels
and colours, the KL's over the latents' numbers; d_w, d_h are the differences of neighbouring pixels: edges. P is a
perceptual distance (`perceptual`). `adversarial` is the form in which latent diffusion's autoencoders were published,
of sums: there a KL weight of 1e-6 is one of 1e-6 c / (3 f^2) here, 2.08e-8 with c = 4 latent channels and f = 8.

A decoder alone may learn (`methods.vae`): latents then stay what they are, and with them every U-Net.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import VaeConfig
from sdjax.nn.vae import Autoencoder, Posterior
from sdjax.train.losses.perceptual import Perceptual
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size, standard_normal

POSTERIOR, BLUR = 0, 1  # of a picture's draws


@dataclass(frozen=True)
class Autoencoding:
    """Equation 2 for batches with `pixels` `b H W 3` in [-1, 1], both sides multiples of the VAE's factor.

    Attributes:
      absolute, square, edges: a, b, c of equation 2. kl: k, on means. perceptual_weight: p.
      perceptual: P; its parameters are params["perceptual"].
      noise: the decoder sees latents with Gaussian noise of so many times their spread over the picture (per channel):
        what it gets from a U-Net will not be exact.
    """

    config: VaeConfig
    absolute: float = 1.0
    square: float = 1.0
    edges: float = 0.5
    kl: float = 2.0833e-8
    perceptual: Perceptual | None = None
    perceptual_weight: float = 1.0
    noise: float = 0.0

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` where the batch has none."""
        return {"keys": picture_keys(key, size(batch))} | dict(batch)

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Raises ValueError for a batch without pixels, or a perceptual term without parameters."""
        x, posterior = encoded(self.config, params, batch)
        y = decoded(self.config, params, self._blurred(posterior, batch))
        terms = self._terms(params, x, y) | {"kl": self.kl * jnp.mean(divergence(posterior), axis=(1, 2, 3))}
        value, count = mean(sum(terms.values(), jnp.zeros(len(x))), batch)
        means = {name: mean(each, batch)[0] for name, each in terms.items()}
        return value, {"loss": value, "count": count} | means

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def _terms(self, params: Mapping[str, Any], x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        error = y - x
        across, down = error[:, :, 1:] - error[:, :, :-1], error[:, 1:] - error[:, :-1]
        terms = {
            "absolute": self.absolute * _mean(jnp.abs(error)),
            "square": self.square * _mean(jnp.square(error)),
            "edges": self.edges * (_mean(jnp.abs(across)) + _mean(jnp.abs(down))),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * distance(self.perceptual, params, x, y)
        return terms

    def _blurred(self, posterior: Posterior, batch: Batch) -> jax.Array:
        latents = sample(posterior, batch)
        spread = jax.lax.stop_gradient(jnp.std(posterior.mean, axis=(1, 2), keepdims=True))
        return latents + self.noise * spread * standard_normal(batch["keys"], BLUR, latents.shape[1:])


def encoded(config: VaeConfig, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Posterior]:
    """A batch's pixels `b H W 3`, float32, and what the encoder says of them. Raises ValueError."""
    if "pixels" not in batch:
        raise ValueError(f"an autoencoder learns from pixels, and the batch has {', '.join(batch)}")
    x = batch["pixels"].astype(jnp.float32)
    if x.shape[1] % config.factor or x.shape[2] % config.factor:
        raise ValueError(f"pictures of {x.shape[1]} x {x.shape[2]} are no multiples of {config.factor}; crop them")
    return x, Autoencoder(config).apply({"params": params["vae"]}, x, method="encode")


def sample(posterior: Posterior, batch: Batch) -> jax.Array:
    """Equation 1's z `b h w c`, by each picture's own key, or by the batch's `noise` `b h w c` where it has one."""
    noise = batch["noise"] if "noise" in batch else standard_normal(batch["keys"], POSTERIOR, posterior.mean.shape[1:])
    return posterior.sample(noise)


def decoded(config: VaeConfig, params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
    """Pixels `b H W 3` of latents `b h w c`, the VAE's own."""
    return Autoencoder(config).apply({"params": params["vae"]}, latents, method="decode")


def divergence(posterior: Posterior) -> jax.Array:
    """Equation 3: `b h w c`."""
    log_variance = posterior.log_variance
    return 0.5 * (jnp.square(posterior.mean) + jnp.exp(log_variance) - 1 - log_variance)


def distance(perceptual: Perceptual, params: Mapping[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """The perceptual distance `b`. Raises ValueError where its parameters are missing."""
    if "perceptual" not in params:
        raise ValueError(
            f'the perceptual term needs params["perceptual"], and there are {", ".join(params)}: read them by the '
            "term's `read`, or leave the term out"
        )
    return perceptual(jax.lax.stop_gradient(params["perceptual"]), x, y)


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))
