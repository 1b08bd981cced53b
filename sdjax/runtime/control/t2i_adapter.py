"""A T2I-Adapter beside the U-Net: features of a map, made once a run and added on each level at every row."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike

from sdjax.config.t2i_adapter import T2IAdapterConfig
from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Guide
from sdjax.nn.control import scales, weighed
from sdjax.nn.injections import Injections
from sdjax.nn.t2i_adapter import T2IAdapter


@dataclass(frozen=True)
class T2IBeside:
    """See `nn.t2i_adapter`. It knows neither time nor text."""

    config: T2IAdapterConfig
    dtype: DTypeLike

    def look(self, params: Params, image: jax.Array) -> tuple[jax.Array, ...]:
        """Maps `b 1 H W c` in [0, 1] -> the features of each of its stages, `b h w d`."""
        return T2IAdapter(self.config, self.dtype).apply({"params": params}, image[:, 0])

    def precompute(self, params: Params, conditions: Conditions) -> None:
        """It reads no text."""

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions, guide: Guide) -> jax.Array:
        """How strongly each stage's features count."""
        return scales(guide)

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions, guide: Guide) -> Injections:
        """The features by their scales and masks."""
        return Injections(levels=tuple(weighed(one, row[:, j], guide) for j, one in enumerate(guide.features)))
