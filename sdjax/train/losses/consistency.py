"""Consistency: a student that jumps from any level to the clean latents, taught by a teacher's small steps.

    f(x, t) = c_skip x + c_out x_0'(x, t)                           the student, x_0' what its answer means  (1)
    c_skip = s^2 / ((10 t)^2 + s^2),  c_out = 10 t / sqrt((10 t)^2 + s^2),  s = 1/2:  f(x, 0) = x            (2)
    r = r_c + w (r_c - r_u)                                         the teacher, with its text and without   (3)
    x_s = alpha_s x_0'(x_t, r) + sigma_s e'(x_t, r)                 one step of DDIM from t to s             (4)
    loss = mean |f(x_t, t) - f-(x_s, s)|                            f- without a gradient                    (5)

Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378; 2311.05556 for LoRA). t is one of the n timesteps
of a solver, (i + 1) T / n - 1, s the one before it, and 0 before the first. w is drawn for each picture, and is one
less than a guidance scale: a student that is told it (`time_cond_proj_dim`) is told the scale w + 1, as in sampling. f-
is an average of the student, or the student itself, as it is for LoRA. Distances are pseudo-Huber's (`errors`), c =
0.001 as in diffusers' scripts, or squares, as in the paper. With so small a c every difference pulls alike, however
small: a small model did not come to rest (docs/training.md).

What takes part, beside what a batch always has:

    params["unet"]       the student. params["teacher"]: the U-Net that it learns from, which is told no scale
    params["target"]     f- where it is an average
    batch["unprompted"]  a dict of what stands for the empty text: `ids`, or `context` and for SDXL `pooled`, `b ..`;
                         not for models that take zeros for it
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from sdjax.nn.conditioning import Conditions, guidance_embedding
from sdjax.train.architecture import Architecture
from sdjax.train.conditioning import conditions_of, latents_of, unprompted
from sdjax.train.losses import predictions
from sdjax.train.losses.denoising import unet_answer
from sdjax.train.losses.errors import pseudo_huber
from sdjax.train.losses.levels import Level, level_at
from sdjax.train.losses.noising import NOISE
from sdjax.train.losses.timesteps import Timesteps
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size, standard_normal

SCALE = 7  # of a picture's draws: w
TIME_SCALE, SIGMA_DATA = 10.0, 0.5  # of equation 2, as sampling with `lcm` has them


@dataclass(frozen=True)
class Consistency:
    """Equation 5 for the U-Net of a model.

    Attributes:
      architecture: of the student; its prediction is the teacher's too.
      steps: n, the solver's steps. lowest, highest: between which w is drawn.
      averaged: whether f- is params["target"]; else it is the student itself.
      c: of the distance; None is the square.

    Raises ValueError for a flow model, for levels without any signal, and for numbers out of range.
    """

    architecture: Architecture
    steps: int = 50
    lowest: float = 5.0
    highest: float = 15.0
    averaged: bool = False
    c: float | None = 0.001
    timesteps: Timesteps = Timesteps()

    def __post_init__(self) -> None:
        total = len(self.architecture.alphas_cumprod)
        if self.architecture.prediction == "flow":
            raise ValueError("consistency distillation here is of models with levels of their own, not of flow models")
        if not 2 <= self.steps <= total:
            raise ValueError(f"the solver of a consistency distillation has 2 to {total} steps, not {self.steps}")
        if not 0 <= self.lowest <= self.highest:
            raise ValueError(f"guidance is drawn from 0 or more upwards, not {self.lowest:g} to {self.highest:g}")
        if self.c is not None and not self.c > 0:
            raise ValueError(f"c of the distance must be above 0, or None for the square, not {self.c:g}")

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys`, and `timesteps` of the solver, where the batch has none."""
        drawn = {"keys": picture_keys(key, size(batch))} | dict(batch)
        if "timesteps" not in drawn:
            which = self.timesteps.draw(key, drawn["keys"], self.steps)
            drawn["timesteps"] = jnp.asarray(self.solver_timesteps())[which]
        return drawn

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        t, x_0 = batch["timesteps"], latents_of(self.architecture, params, batch)
        s = jnp.maximum(t - len(self.architecture.alphas_cumprod) // self.steps, 0)
        e = batch["noise"] if "noise" in batch else standard_normal(batch["keys"], NOISE, x_0.shape[1:])
        x, w = level_at(self.architecture, t).noised(x_0, e), self._scales(batch)
        x_s = stop_gradient(self._step(params, batch, x, t, s, w))
        conditions = self._told(conditions_of(self.architecture, params, batch), w)
        target = params["target"] if self.averaged else params["unet"]
        jump = self.jump(params["unet"], x, t, conditions)
        difference = jump - stop_gradient(self.jump(target, x_s, s, conditions))
        error = jnp.square(difference) if self.c is None else pseudo_huber(difference, self.c)
        value, count = mean(jnp.mean(error * batch.get("weights", 1.0), axis=(1, 2, 3)), batch)
        return value, {"loss": value, "count": count}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))

    def solver_timesteps(self) -> np.ndarray:
        """int32 `n`, increasing: 19, 39, .., 999 for 50 of 1000."""
        stride = len(self.architecture.alphas_cumprod) // self.steps
        return (np.arange(1, self.steps + 1) * stride - 1).astype(np.int32)

    def jump(self, unet: Mapping[str, Any], x: jax.Array, t: jax.Array, conditions: Conditions) -> jax.Array:
        """Equation 1: x `b h w c` at the timesteps `b` -> `b h w c`. unet: the student's parameters."""
        raw, level = unet_answer(self.architecture, unet, x, t, conditions), level_at(self.architecture, t)
        skip, out = (one[:, None, None, None] for one in boundary(t))
        return skip * x + out * predictions.clean(self.architecture.prediction, level, x, raw)

    def _step(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, s: jax.Array, w: jax.Array
    ) -> jax.Array:
        """Equations 3 and 4."""
        teacher = replace(self.architecture, unet=replace(self.architecture.unet, time_cond_proj_dim=None))
        prompted = conditions_of(self.architecture, params, batch)
        both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), prompted, unprompted(teacher, params, batch))
        twice_x, twice_t = (jnp.concatenate([each, each]) for each in (x, t))
        answers = unet_answer(teacher, params["teacher"], twice_x, twice_t, both)
        with_text, without = jnp.split(answers, 2)
        raw = with_text + w[:, None, None, None] * (with_text - without)
        level: Level = level_at(teacher, t)
        found = (of(teacher.prediction, level, x, raw) for of in (predictions.clean, predictions.noise))
        return level_at(teacher, s).noised(*found)

    def _scales(self, batch: Batch) -> jax.Array:
        """w, `b`."""

        def one(key: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, SCALE), minval=self.lowest, maxval=self.highest)

        return jax.vmap(one)(batch["keys"])

    def _told(self, conditions: Conditions, w: jax.Array) -> Conditions:
        """The student's conditions, the guidance scale among them where it takes it."""
        features = self.architecture.unet.time_cond_proj_dim
        return conditions if features is None else replace(conditions, guidance=guidance_embedding(w + 1, features))


def boundary(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(c_skip, c_out) of equation 2 at the timesteps `b`, float32."""
    scaled = TIME_SCALE * t.astype(jnp.float32)
    total = jnp.square(scaled) + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled * jax.lax.rsqrt(total)
