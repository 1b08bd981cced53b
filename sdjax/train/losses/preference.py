"""Preference: of two pictures for one text the better one is to become likelier; diffusion-DPO.

    d_w = m_w - r_w,  d_l = m_l - r_l,   m and r the squared errors of the model and of a reference          (1)
    z = beta (d_l - d_w)                                                                                    (2)
    sigmoid   loss = -log sigmoid(z)                                                                        (3)
    hinge     loss = max(0, 1 - z)                                                                          (4)

(Wallace et al. 2023, arXiv:2311.12908, equation 14; the hinge as in Zhao et al. 2023, arXiv:2305.10425.) w is the one
that was preferred, l the other; both are shown with the same noise at the same timestep. The errors are means over a
picture's elements, so beta does not depend on its size: 2500 as in diffusers' trainer. Rates are small (1e-8 times the
batch for a whole U-Net), and clipped: beta makes gradients thousandfold.

What takes part, beside what a batch always has: batch["rejected"], of the same kind and shape as the preferred picture
in `latents`, `moments` or `pixels`; params["reference"], the U-Net's parameters before training. With LoRA these are
what the adapter is on, so nothing is in memory twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sdjax.core.errors import unknown
from sdjax.train.losses.denoising import Denoising
from sdjax.train.objective import Batch, Metrics, mean

KINDS = ("sigmoid", "hinge")


@dataclass(frozen=True)
class Preference:
    """Equations 3 and 4 over the errors of an objective, its weighting included.

    Attributes:
      denoising: what squared errors are, and which timesteps and noise they have. beta: above 0. kind: one of KINDS.
    """

    denoising: Denoising
    beta: float = 2500.0
    kind: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown(f"preference loss {self.kind!r} is unknown", self.kind, KINDS))
        if not self.beta > 0:
            raise ValueError(f"beta of a preference loss must be above 0, not {self.beta:g}")

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """Adds `keys` and `timesteps` where the batch has none; one of each for a pair."""
        return self.denoising.draw(batch, key)

    def loss(self, params: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
        """See `objective`. Metrics: "loss", "margin", the mean of z; "right", how often z is above 0; "count".

        Raises ValueError for a batch without `rejected`.
        """
        pairs, reference = both(batch), {**params, "unet": params["reference"]}
        model, _ = self.denoising.errors(params, pairs)
        better, worse = jnp.split(model - stop_gradient(self.denoising.errors(reference, pairs)[0]), 2)
        z = self.beta * (worse - better)
        value, count = mean(jax.nn.softplus(-z) if self.kind == "sigmoid" else jax.nn.relu(1 - z), batch)
        margin, right = (mean(each, batch)[0] for each in (z, (z > 0).astype(jnp.float32)))
        return value, {"loss": value, "margin": margin, "right": right, "count": count}

    def __call__(self, params: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `objective`."""
        return self.loss(params, self.draw(batch, key))


def both(batch: Batch) -> Batch:
    """A batch of b pairs as one of 2 b pictures, those preferred first; all else of a pair stands twice.

    Raises ValueError where there is nothing rejected.
    """
    if "rejected" not in batch:
        raise ValueError("a batch of pairs has the pictures that were not preferred, as `rejected`; this one has none")
    name = next(name for name in ("latents", "moments", "pixels", "rejected") if name in batch)
    doubled = {other: leaf for other, leaf in batch.items() if other not in (name, "rejected")}
    doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), doubled)
    return {**doubled, name: jnp.concatenate([batch[name], batch["rejected"]])}
