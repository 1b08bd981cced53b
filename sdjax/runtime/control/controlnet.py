"""A ControlNet beside the U-Net: residuals for its skips and its middle, at every row that wants them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config.controlnet import ControlNetConfig
from sdjax.core.tree import Params
from sdjax.nn.conditioning import Chunks, Conditions, Guide, KeysValues
from sdjax.nn.control import scales, weighed
from sdjax.nn.controlnet import ControlNet, HintEmbedding, controlnet_time_shifts
from sdjax.nn.injections import Injections
from sdjax.runtime.denoisers import along_rows, first_keys_values


@dataclass(frozen=True)
class ControlNetBeside:
    """See `nn.controlnet`. It is told the text and the time as the U-Net is, and wears no adapter."""

    config: ControlNetConfig
    dtype: DTypeLike

    def look(self, params: Params, image: jax.Array) -> jax.Array:
        """Maps `b m H W c` in [0, 1] -> `b h w d`, or of a Union `b m h w d`."""
        b, m, *size = image.shape
        embed = HintEmbedding(self.config, self.dtype)
        own = {"params": params["controlnet_cond_embedding"]}
        made = embed.apply(own, image.reshape(b * m, *size))
        return made.reshape(b, m, *made.shape[1:]) if self.config.num_control_type is not None else made

    def precompute(self, params: Params, conditions: Conditions) -> KeysValues | None:
        """Its own keys and values of every picture's first piece of text."""
        text = conditions.context
        return first_keys_values(params, text, self.dtype) if isinstance(text, Chunks) else None

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions, guide: Guide) -> Any:
        """What the time adds in each of its resnets, and how strongly each residual counts."""
        told = replace(conditions.beside_time(), worn=None)
        modes = None if guide.kinds is None else guide.kinds.modes

        def one(now: Any) -> dict[str, jax.Array]:
            t, (told, modes) = jax.tree.map(lambda a: a[None], now)
            shifts = controlnet_time_shifts(self.config, self.dtype, params, t, told, modes)
            return jax.tree.map(lambda a: a[0], shifts)

        count = jax.tree.leaves(conditions)[0].shape[0]
        return along_rows(one, timesteps, (told, modes), count), scales(guide)

    def __call__(self, params: Params, x: jax.Array, row: Any, conditions: Conditions, guide: Guide) -> Injections:
        """Residuals by their scales and masks; where all scales are zero the network does not run."""
        time, scale = row
        text = conditions.context
        context = replace(text, first=guide.text or {}) if isinstance(text, Chunks) else text
        told = replace(conditions, context=context, channels=None, worn=None, control=())
        kinds = guide.kinds or (None, None)

        def run(x: jax.Array) -> tuple[jax.Array, ...]:
            network = ControlNet(self.config, self.dtype)
            made = network.apply({"params": params}, x, time, told, guide.features, *kinds)
            return tuple(weighed(one, scale[:, j], guide) for j, one in enumerate(made))

        def skip(x: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(jnp.zeros(one.shape, one.dtype) for one in jax.eval_shape(run, x))

        residuals = jax.lax.cond(jnp.any(scale != 0), run, skip, x)
        return Injections(skips=residuals[:-1], middle=residuals[-1])
