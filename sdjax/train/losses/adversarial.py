"""The loss that latent diffusion's autoencoders were trained by: likelihood, a small KL, and a discriminator.

    r   = |x - y| + p P(x, y)                                  of every number of a picture; P the same for all   (1)
    nll = sum over a picture of (r / e^s + s),                 s a log-variance, constant or learnt               (2)
    KL  = sum over a picture's latents of (m^2 + v - 1 - log v) / 2                                            (3)
    G   = -mean D(y)                                                                                         (4)
    loss of the VAE = mean_b [nll + k KL] + d f G                                                            (5)
    d   = w min(|grad_L nll| / (|grad_L G| + 1e-4), 1e4),      L the kernel of the decoder's last convolution    (6)
    loss of D = f (mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))) / 2                                         (7)

Rombach et al. 2022 (arXiv:2112.10752, section 3.1, appendix G), `LPIPSWithDiscriminator` of their repository; d is
that of Esser et al. 2021 (arXiv:2012.09841, equation 7): both gradients are equally long where they leave the decoder.
f is 0 until the discriminator is let in (there after 50,000 steps), then 1: data of a batch, `adversarial` `b`, so that
one program runs throughout. These are sums over pixels: k = 1e-6 is small indeed.

Both networks learn in the same step: the loss is (5) + (7), with D's parameters held in (5), and y in (7), so that its
gradient with respect to each network is that of its own loss. (In their code D's half-step sees pictures that the
VAE's half-step has just made better; here both see the same ones, and y is made once.)

Equation 6 needs the gradients of nll and of G at y before any of the loss is differentiated. They are taken once, as
numbers, and their pull to L is one product of the decoder's last features with each. The same numbers then are the
loss's gradient at y, so that neither D nor P is passed through twice: see `_told`. For that reason this loss has no
second derivative.

A batch cut in pieces has a d for each (as has theirs), and with the batch norm as published, logits of each: the
pieces' losses do not quite add up to the whole's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import VaeConfig
from sdjax.nn.discriminator import PatchDiscriminator
from sdjax.nn.layers import Conv
from sdjax.nn.vae import Autoencoder
from sdjax.train.losses.autoencoding import distance, divergence, encoded, sample
from sdjax.train.losses.perceptual import Perceptual
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size

LARGEST = 1e4
SMALLEST = 1e-4


@dataclass(frozen=True)
class AdversarialAutoencoding:
    """Equations 5 and 7 together, for batches with `pixels` `b H W 3` in [-1, 1] and, from some step on, `adversarial`.

    Attributes:
      discriminator: D; its parameters are params["discriminator"].
      perceptual: P of equation 1, of parameters params["perceptual"]; None leaves it out. perceptual_weight: p.
      square: (x - y)^2 in place of |x - y|, as in the "ft-MSE" decoders (with p = 0.1).
      kl: k of equation 5. weight: w of equation 6.
      log_variance: s, where params["log_variance"] {"value": scalar} does not say; there it is learnt.
    """

    config: VaeConfig
    discriminator: PatchDiscriminator = field(default_factory=PatchDiscriminator)
    perceptual: Perceptual | None = None
    perceptual_weight: float = 1.0
    square: bool = False
    kl: float = 1e-6
    weight: float = 0.5
    log_variance: float = 0.0

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys`, and `adversarial` of zeros, where the batch has none."""
        b = size(batch)
        return {"keys": picture_keys(key, b), "adversarial": jnp.zeros(b)} | dict(batch)

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Raises ValueError for a batch without pixels."""
        x, posterior = encoded(self.config, params, batch)
        y, features = self._decoded(params, sample(posterior, batch))
        let_in, count = mean(batch["adversarial"].astype(jnp.float32), batch)  # f
        own, of_own = self._pulled(params, x, y, batch)
        fooled, of_fooled = jax.value_and_grad(lambda y: self._fooled(params, y, batch))(jax.lax.stop_gradient(y))
        weight = self._weight(params, features, of_own, of_fooled)
        kl = mean(jnp.sum(divergence(posterior), axis=(1, 2, 3)), batch)[0]
        value = own + self.kl * kl + weight * let_in * _told(fooled, y, of_fooled)
        hinge, real, fake = self._hinge(params, x, y, batch)
        metrics = {"loss": value + let_in * hinge, "count": count, "likelihood": own, "kl": kl, "fooled": fooled}
        metrics |= {"weight": weight, "discriminator": hinge, "real": real, "fake": fake}
        return value + let_in * hinge, metrics

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def _decoded(self, params: Mapping[str, Any], latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """y, and the features that the last convolution makes it of, without a gradient."""
        y, seen = Autoencoder(self.config).apply(
            {"params": params["vae"]},
            latents,
            method="decode",
            capture_intermediates=lambda module, _: module.name == "conv_norm_out",
            mutable=["intermediates"],
        )
        (normed,) = seen["intermediates"]["decoder"]["conv_norm_out"]["__call__"]
        return y, jax.lax.stop_gradient(jax.nn.silu(normed))

    def _pulled(
        self, params: Mapping[str, Any], x: jax.Array, y: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """Equation 2's mean, differentiable, and its gradient at y as numbers."""
        s = params["log_variance"]["value"] if "log_variance" in params else jnp.float32(self.log_variance)

        def likelihood(y: jax.Array, s: jax.Array) -> jax.Array:
            error = jnp.square(x - y) if self.square else jnp.abs(x - y)
            if self.perceptual is not None:
                apart = distance(self.perceptual, params, x, y)
                error = error + self.perceptual_weight * apart[:, None, None, None]
            return mean(jnp.sum(error / jnp.exp(s) + s, axis=(1, 2, 3)), batch)[0]

        still = jax.lax.stop_gradient((y, s))
        value, (of_y, of_s) = jax.value_and_grad(likelihood, argnums=(0, 1))(*still)
        return _told(_told(value, y, of_y), s, of_s), of_y

    def _fooled(self, params: Mapping[str, Any], y: jax.Array, batch: Batch) -> jax.Array:
        """Equation 4, D held."""
        return -self._mean_logit(self._logits(jax.lax.stop_gradient(params["discriminator"]), y), batch)

    def _hinge(
        self, params: Mapping[str, Any], x: jax.Array, y: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Equation 7 without f, y held; and the mean logits of x and of y."""
        real = self._logits(params["discriminator"], x)
        fake = self._logits(params["discriminator"], jax.lax.stop_gradient(y))
        both = self._mean_logit(jax.nn.relu(1 - real), batch) + self._mean_logit(jax.nn.relu(1 + fake), batch)
        return 0.5 * both, self._mean_logit(real, batch), self._mean_logit(fake, batch)

    def _logits(self, params: Any, x: jax.Array) -> jax.Array:
        return self.discriminator.apply({"params": params}, x)

    def _mean_logit(self, logits: jax.Array, batch: Batch) -> jax.Array:
        return mean(jnp.mean(logits, axis=(1, 2)), batch)[0]

    def _weight(
        self, params: Mapping[str, Any], features: jax.Array, of_own: jax.Array, of_fooled: jax.Array
    ) -> jax.Array:
        """Equation 6, a number."""
        last = jax.lax.stop_gradient(params["vae"]["decoder"]["conv_out"])
        convolution = Conv(self.config.out_channels, jnp.float32)

        def made(kernel: jax.Array) -> jax.Array:
            return convolution.apply({"params": {**last, "kernel": kernel}}, features)

        _, pull = jax.vjp(made, last["kernel"])
        own, fooled = (jnp.sqrt(jnp.sum(jnp.square(pull(one)[0]))) for one in (of_own, of_fooled))
        return jax.lax.stop_gradient(self.weight * jnp.minimum(own / (fooled + SMALLEST), LARGEST))


def _told(value: jax.Array, at: jax.Array, gradient: jax.Array) -> jax.Array:
    """`value`, with this gradient with respect to `at`: what is added is zero and has it."""
    return value + jnp.sum((at - jax.lax.stop_gradient(at)) * gradient)
