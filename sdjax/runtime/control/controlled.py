"""A U-Net that other networks steer: one more denoiser, which the sampling loop knows no better than another."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import jax

from sdjax.core.tree import Params
from sdjax.nn.conditioning import Conditions, Guide
from sdjax.nn.control import ControlNetwork
from sdjax.nn.denoiser import Steerable


@dataclass(frozen=True)
class Controlled:
    """A U-Net, and the networks beside it, each with a `Guide` of its own in `Conditions.control`.

    Parameters are {"unet": its own, "control": those of each network}.
    """

    unet: Steerable
    networks: tuple[ControlNetwork, ...]

    def precompute(self, params: Params, conditions: Conditions) -> Conditions:
        """What the U-Net makes of the text, and in `control` what each network makes of it: guides of a text alone."""
        pairs = zip(self.networks, params["control"], strict=True)
        texts = [network.precompute(own, conditions) for network, own in pairs]
        made = self.unet.precompute(params["unet"], conditions)
        return replace(made, control=tuple(Guide(text=text) for text in texts))

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions) -> Any:
        """What the time is to the U-Net, and what changes from row to row for each network."""
        each = zip(self.networks, params["control"], conditions.control, strict=True)
        beside = tuple(network.per_row(own, timesteps, conditions, guide) for network, own, guide in each)
        return self.unet.per_row(params["unet"], timesteps, conditions), beside

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions) -> jax.Array:
        """x `b h w c` -> `b h w c`, float32: the U-Net's prediction with what all networks add inside it."""
        time, rows = row
        each = zip(self.networks, params["control"], rows, conditions.control, strict=True)
        injected = reduce(add, (network(own, x, now, conditions, guide) for network, own, now, guide in each))
        return self.unet(params["unet"], x, time, conditions, injected)
