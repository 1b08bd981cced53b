"""An IP-Adapter beside the U-Net: the keys and values of pictures, made once a run, for all its cross-attention."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike

from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Guide, KeysValues
from sdjax.nn.control import scales
from sdjax.nn.image_prompt import image_keys_values
from sdjax.nn.injections import ImageTokens, Injections


@dataclass(frozen=True)
class ImagePromptBeside:
    """See `nn.image_prompt`. Its parameters are the layers' own, by path, in the order in which scales are told."""

    paths: tuple[str, ...]
    dtype: DTypeLike

    def look(self, params: Params, image: jax.Array) -> KeysValues:
        """Tokens `b m d` -> keys and values of each cross-attention by its path, `b m c` each."""
        return image_keys_values(params, image, self.dtype)

    def precompute(self, params: Params, conditions: Conditions) -> None:
        """It reads no text."""

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions, guide: Guide) -> jax.Array:
        """How strongly each layer's tokens count."""
        return scales(guide)

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions, guide: Guide) -> Injections:
        """The picture's keys and values with this row's scales."""
        by_path = {path: row[:, j] for j, path in enumerate(self.paths)}
        return Injections(images=(ImageTokens(guide.features, by_path, guide.masks),))
