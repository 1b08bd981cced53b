"""Denoising: noise a latent, predict the noise, and how far off the prediction is; the loss of every diffusion model.

    x = alpha_t x_0 + sigma_t e,     loss = mean_b w(t) mean_hwc |f(x, t, c) - target(x_0, e, t)|^2         (1)

(Ho et al. 2020, arXiv:2006.11239, equation 14, for the noise as target and w = 1.) Each choice in it is a file: the
target is in `predictions`, the levels are in `levels`, w in `weightings`, what may stand for the square in `errors`, e
in `noising`, t in `timesteps`.

DREAM (Zhou et al. 2023, arXiv:2312.00210) lets the network correct what it will meet in sampling, its own mistakes:

    e <- e + sigma_t^p (e - e'),    e' the noise that the network finds in x, without a gradient             (2)

before x and the target are made from e. It costs another evaluation, about a third of a step more.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sdjax.nn.conditioning import Conditions
from sdjax.nn.injections import NOTHING, Injections
from sdjax.nn.unet import UNet
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of, latents_of
from sdjax.train.losses import predictions
from sdjax.train.losses.errors import Error
from sdjax.train.losses.levels import check_signal, count, has_zero_terminal_snr, level_at
from sdjax.train.losses.noising import Noising
from sdjax.train.losses.timesteps import Timesteps
from sdjax.train.losses.weightings import Weighting
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size


def unet_answer(
    architecture: Architecture,
    params: Mapping[str, Any],
    x: jax.Array,
    t: jax.Array,
    conditions: Conditions,
    injected: Injections = NOTHING,
) -> jax.Array:
    """What the U-Net answers to x `b h w c` at the timesteps `b`: `b h w c`, float32. params: of the U-Net."""
    unet = UNet(architecture.unet, architecture.dtype, architecture.remat)
    return unet.apply({"params": params}, x, t.astype(jnp.float32), conditions, injected).astype(jnp.float32)


@dataclass(frozen=True)
class Denoising:
    """Equation 1 for the U-Net of a model.

    What other networks add to it, and other targets, are told by a subclass, in `injected` and `wanted`; one that has
    fields of its own to check calls this `__post_init__` too.

    Attributes:
      dream: p of equation 2, 0 or more (published: 1); None leaves (2) out.

    Raises ValueError for choices that do not go together: a weighting of another prediction, noise to be predicted
    where a level holds nothing else, timesteps between levels of which the last is infinitely far.
    """

    architecture: Architecture
    _: KW_ONLY
    weighting: Weighting = Weighting()
    error: Error = Error()
    noising: Noising = Noising()
    timesteps: Timesteps = Timesteps()
    dream: float | None = None

    def __post_init__(self) -> None:
        check_signal(self.architecture)
        self.weighting.check(self.architecture.prediction)
        if self.timesteps.continuous and has_zero_terminal_snr(self.architecture):
            raise ValueError("levels of zero terminal SNR have no continuous timesteps: the last is infinitely noisy")
        if self.timesteps.shift != 1 and self.architecture.prediction != "flow":
            raise ValueError("shift is one of flow matching's timesteps; a model of other predictions takes a density")
        if self.dream is not None and self.dream < 0:
            raise ValueError(f"the power of DREAM must be 0 or more, not {self.dream:g}")

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` and `timesteps` where the batch has none."""
        drawn = {"keys": picture_keys(key, size(batch))} | dict(batch)
        if "timesteps" not in drawn:
            flow = self.architecture.prediction == "flow"
            draw = self.timesteps.flow if flow else self.timesteps.draw
            drawn["timesteps"] = draw(key, drawn["keys"], count(self.architecture))
        return drawn

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Metrics: "loss"; "square", the error of the answer squared, without any weight; "count"."""
        each, square = self.errors(params, batch)
        value, number = mean(each, batch)
        plain, _ = mean(square, {name: leaf for name, leaf in batch.items() if name == "valid"})
        return value, {"loss": value, "square": plain, "count": number}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def errors(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What (1) is the mean of, `b`; and the mean square of each picture, `b`, without w or `weights`.

        batch: one that `draw` has seen.
        """
        x_0, t = latents_of(self.architecture, params, batch), batch["timesteps"]
        kind, level = self.architecture.prediction, level_at(self.architecture, t)
        conditions = conditions_of(self.architecture, params, batch)
        e = batch["noise"] if "noise" in batch else self.noising.draw(batch["keys"], x_0)
        if self.dream is not None:
            raw = stop_gradient(self._answer(params, batch, self._noised(batch, level, x_0, e), t, conditions))
            found = predictions.noise(kind, level, level.noised(x_0, e), raw)
            e = e + level.beside(x_0).sigma ** self.dream * (e - found)
        x = self._noised(batch, level, x_0, e)
        wanted = self.wanted(params, batch, x, t, predictions.target(kind, level, x_0, e))
        difference = self._answer(params, batch, x, t, conditions) - wanted
        error = self.error(difference, level, t / count(self.architecture)) * batch.get("weights", 1.0)
        each = jnp.mean(error, axis=(1, 2, 3)) * self.weighting(kind, level)
        return each, jnp.mean(jnp.square(difference), axis=(1, 2, 3))

    def predict(
        self, params: Mapping[str, Any], x: jax.Array, t: jax.Array, conditions: Conditions, injected: Injections
    ) -> jax.Array:
        """The U-Net's answer `b h w c` to x `b h w c` at the timesteps `b`."""
        return unet_answer(self.architecture, params["unet"], x, t, conditions, injected)

    def injected(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, conditions: Conditions
    ) -> Injections:
        """What other networks add inside the U-Net; nothing here (see `methods.controlnet`, `methods.image_prompt`)."""
        return NOTHING

    def wanted(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, target: jax.Array
    ) -> jax.Array:
        """What the answer is compared with, `b h w c`: the target of (1) here (see `preserving`)."""
        return target

    def _answer(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, conditions: Conditions
    ) -> jax.Array:
        return self.predict(params, x, t, conditions, self.injected(params, batch, x, t, conditions))

    def _noised(self, batch: Batch, level: Any, x_0: jax.Array, e: jax.Array) -> jax.Array:
        """What the network sees, with what perturbs it and is no part of the target."""
        return level.noised(x_0, self.noising.perturbed(batch["keys"], e) if self.noising.perturbation else e)
