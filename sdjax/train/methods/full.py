"""Full: a network's own parameters learn, all of them or those that rules choose.

Fine-tuning of the U-Net, or of text encoders beside it or alone; what is written is a model's component.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from sdjax.core.tree import Params
from sdjax.train.methods.rules import Rule, joined, learning, part

UNET = (("^unet/", True), ("", False))
TEXT_ENCODER = (("^text_encoder", True), ("", False))
CROSS_ATTENTION = ((r"^unet/.*/attn2/", True), ("", False))


@dataclass(frozen=True)
class Full:
    """Parameters learn where `rules` say so; see `rules`."""

    rules: tuple[Rule, ...] = UNET

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`."""
        del key
        return part(params, learning(params, self.rules))

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        return joined(params, trainable)
