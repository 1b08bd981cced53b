"""Preserving: what a model answered before is what it shall go on answering, beside the new that it learns.

    new pictures    mean |f(x, t, c) - target|^2                                                            (1)
    old pictures    mean |f(x, t, c) - f_0(x, t, c)|^2,    f_0 the model before training, without a gradient  (2)

DreamBooth's prior preservation (Ruiz et al. 2022, arXiv:2208.12242) has (1) for both. (2) asks for what was there,
noise for noise, and not for what a picture says: it is 0 until something is forgotten, and so has no noise of its own
(as in learning without forgetting, Li & Hoiem 2016, arXiv:1606.09282). Text encoders that learn too are compared with
what they were. It costs one more evaluation of the networks without a way back.

What takes part, beside what a batch always has: batch["preserved"] `b`, 1 for an old picture and 0 for a new one; and
params["reference"], the parameters before training by component, of those that learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sdjax.train.conditioning import conditions_of
from sdjax.train.losses.denoising import Denoising
from sdjax.train.objective import Batch


@dataclass(frozen=True)
class Preserving(Denoising):
    """Equations 1 and 2."""

    def wanted(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, target: jax.Array
    ) -> jax.Array:
        """See `Denoising`. Raises ValueError for a batch that does not say which pictures are old."""
        if "preserved" not in batch:
            raise ValueError("what is to be preserved is batch['preserved'], 1 for each old picture; this has none")
        before = {**params, **params["reference"]}
        conditions = conditions_of(self.architecture, before, batch)
        answer = self.predict(before, x, t, conditions, self.injected(before, batch, x, t, conditions))
        old = batch["preserved"].astype(jnp.float32)[:, None, None, None]
        return jnp.where(old > 0, stop_gradient(answer), target)
