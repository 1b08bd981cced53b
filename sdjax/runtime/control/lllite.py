"""A ControlNet-LLLite beside the U-Net: what stands before the layers of its attention."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike

from sdjax.config.lllite import LLLiteConfig
from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Guide
from sdjax.nn.control import scales
from sdjax.nn.injections import Injections
from sdjax.nn.lllite import LLLiteTokens, lllite_steps


@dataclass(frozen=True)
class LLLiteBeside:
    """See `nn.lllite`. Its map's tokens are made once a run."""

    config: LLLiteConfig
    dtype: DTypeLike

    def look(self, params: Params, image: jax.Array) -> dict[str, jax.Array]:
        """Maps `b 1 H W 3` in [0, 1] -> the tokens of each layer by its path, `b l e`."""
        made = LLLiteTokens(self.config, self.dtype).apply({"params": params}, 2 * image[:, 0] - 1)
        return {".".join(path): tokens for path, tokens in made.items()}

    def precompute(self, params: Params, conditions: Conditions) -> None:
        """It reads no text."""

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions, guide: Guide) -> jax.Array:
        """How strongly it counts."""
        return scales(guide)

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions, guide: Guide) -> Injections:
        """A step before each layer, with the map's tokens."""
        tokens = {one.path: guide.features[".".join(one.path)] for one in self.config.modules}
        return Injections(before=(lllite_steps(params, tokens, row[:, 0]),))
