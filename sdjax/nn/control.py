"""What steers a U-Net from beside it, as the sampling loop sees it: a ControlNet, an adapter of features, a picture.

    features = network.look(params, image)                       once a run
    text = network.precompute(params, conditions)                once a text
    rows = network.per_row(params, timesteps, conditions, guide)
    injected = network(params, x, row, conditions, guide)        at every row, before the U-Net

Each looks at a picture of its own, and says what is added inside the U-Net (`injections`). Several add up. The
denoiser that runs them beside a U-Net knows them by these four alone (`runtime.control.controlled`), so that another
one is a file of its own and a line in `runtime.control.networks`.
"""

from collections.abc import Hashable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Guide, KeysValues
from sdjax.nn.injections import Injections


class ControlNetwork(Hashable, Protocol):
    """Its config and the dtype it computes in: hashable and equal by value, for it is a program's static part.

    Arrays are arguments, pure functions all four: parameters as a plain tree, everything else for b pictures.
    """

    def look(self, params: Params, image: jax.Array) -> Any:
        """What it makes of the pictures that it looks at, `b H W c`, and needs at every step: leaves `b ..`."""

    def precompute(self, params: Params, conditions: Conditions) -> KeysValues | None:
        """The keys and values that it has of the text's first piece; None where it reads no text."""

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions, guide: Guide) -> Any:
        """What changes from row to row, for timesteps `r` or `r b`: leaves `r b ..`; `r 1 ..` where all are alike."""

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions, guide: Guide) -> Injections:
        """What is added inside the U-Net that predicts from x `b h w c`. row: of `per_row`, leaves `b ..`."""


def scales(guide: Guide) -> jax.Array:
    """How strongly each thing counts that a network adds, by row: float32 `n b j`."""
    assert guide.scale is not None
    return jnp.moveaxis(guide.scale, 1, 0)


def weighed(added: jax.Array, scale: jax.Array, guide: Guide) -> jax.Array:
    """What a network adds, `b h w c`, by its scale `b` and where the network acts; what is pooled has no places."""
    b, h, w, _ = added.shape
    weight = jnp.broadcast_to(scale[:, None], (b, h * w))
    if str(h * w) in guide.masks:
        weight = weight * guide.masks[str(h * w)]
    return added * weight.reshape(b, h, w, 1).astype(added.dtype)
