"""Reward: a model is taught what a score likes in its pictures, by the gradient through the sampler itself.

    loss = -mean_b R(picture_b),    picture = decode(x_n),    x_i of a plan's rows (`sdjax.diffusion.table`)       (1)

DRaFT (Clark et al. 2023, arXiv:2309.17400) and AlignProp (Prabhudesai et al. 2023, arXiv:2310.03739). R must have a
gradient. The plan is any: deterministic, or with draws, which come from each picture's key, so the gradient of the
expected reward is the mean of (1)'s (they are fixed numbers once the key is).

Through all rows it is the exact gradient of what `generate` makes. DRaFT-K takes the last K alone: what came before is
run without a gradient, and its predictions and latents are numbers,

    x_n = x_n(D_(n-K) .. D_(n-1); sg(D_0 .. D_(n-K-1)))                                                     (2)

which costs K backward passes in place of n, and does not explode: guidance multiplies a gradient at every row, so more
than ten rows of it seldom help. One row learns textures and colours, more of them layouts.

Memory: the scan keeps what a row is made of, and evaluates the network again on the way back (`jax.checkpoint` of its
body), so it is some ten times the latents a row and one evaluation's activations, however many rows there are. What the
decoder holds comes on top.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guided, classifier_free, pair
from sdjax.diffusion.plan import Plan
from sdjax.nn.conditioning import Conditions
from sdjax.nn.vae import Autoencoder
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of, unprompted
from sdjax.train.losses.denoising import unet_answer
from sdjax.train.losses.noising import NOISE
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size, standard_normal

DRAWS = 8  # of a picture's draws: the key of those that its sampler makes

# (pixels `b H W 3` in [-1, 1] or latents `b h w c`, the parameters by component, the batch) -> scores `b`
Score = Callable[[jax.Array, Mapping[str, Any], Batch], jax.Array]


@dataclass(frozen=True)
class Reward:
    """Equation 1 for the U-Net of a model.

    Attributes:
      score: R, a function with a gradient. What it needs beside the picture are parameters, under a name of their own,
        and leaves of the batch.
      plan: how pictures are made; two objectives are equal where it is the same object.
      height, width: of the latents.
      last: K of equation 2, in rows of the plan; None is all.
      guidance_scale: 1 is none; else the batch has what stands for the empty text, as in `consistency`.
      decode: whether R sees pixels, which params["vae"] decodes and which are not clipped; else it sees latents.

    Raises ValueError for numbers out of range, and for a plan that asks for unguided predictions without guidance.
    """

    architecture: Architecture
    score: Score
    plan: Plan
    height: int
    width: int
    last: int | None = None
    guidance_scale: float = 1.0
    decode: bool = True

    def __post_init__(self) -> None:
        rows = self.plan.rows - 1
        if self.last is not None and not 1 <= self.last <= rows:
            raise ValueError(f"last must be 1 to {rows}, the rows of {self.plan}, or None for all, not {self.last}")
        if min(self.height, self.width) < 1:
            raise ValueError(f"height and width of the latents must be 1 or more, not {self.height} x {self.width}")
        if self.plan.unguided is not None and self.guidance_scale == 1:
            raise ValueError(f"{self.plan.sampler} goes by predictions without guidance: give a guidance_scale")

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` where the batch has none."""
        return {"keys": picture_keys(key, size(batch))} | dict(batch)

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Metrics: "loss", "reward", "count"."""
        latents = self.latents(params, batch)
        pictures = self._pixels(params, latents) if self.decode else latents
        score = self.score(pictures, params, batch).astype(jnp.float32)
        if score.shape != (len(latents),):
            raise ValueError(f"a score is one number for each of {len(latents)} pictures, not {list(score.shape)}")
        value, count = mean(score, batch)
        return -value, {"loss": -value, "reward": value, "count": count}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def latents(self, params: Mapping[str, Any], batch: Batch) -> jax.Array:
        """What the plan makes of a batch, clean latents `b h w c`; only the last K rows have a gradient."""
        keys, table = batch["keys"], self.plan.table(self.plan.rows - 1)
        x_T = standard_normal(keys, NOISE, (self.height, self.width, self.architecture.vae.latent_channels))
        model, before = self._model(params, batch), 0 if self.last is None else self.plan.rows - 1 - self.last
        carry = scan.init(table, x_T, model.guider if isinstance(model, Guided) else None)
        carry = scan.draw(carry, table, jax.vmap(lambda key: jax.random.fold_in(key, DRAWS))(keys))
        if before:
            frozen = self._model(stop_gradient(dict(params)), batch)
            carry = stop_gradient(scan.run_rows(carry, table.rows(0, before), frozen))
        return scan.result(scan.run_rows(carry, table.rows(before, self.plan.rows), model))

    def _model(self, params: Mapping[str, Any], batch: Batch) -> scan.Model:
        """The U-Net with a batch's conditions, guided where there is guidance."""
        told = conditions_of(self.architecture, params, batch)
        if self.guidance_scale == 1:
            return self._network(params, told)
        network = self._network(params, pair(unprompted(self.architecture, params, batch), told))
        return classifier_free(network, jnp.full(size(batch), self.guidance_scale))

    def _network(self, params: Mapping[str, Any], told: Conditions) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(x, t) -> raw. t: a scalar."""
        return lambda x, t: unet_answer(self.architecture, params["unet"], x, jnp.full(len(x), t), told)

    def _pixels(self, params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
        unscaled = latents / self.architecture.vae.scaling_factor
        return Autoencoder(self.architecture.vae).apply({"params": params["vae"]}, unscaled, method="decode")
