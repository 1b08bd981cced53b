"""The networks that the sampling loop can run, as `Denoiser`s; and on a CPU, how it runs them picture by picture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import Config, UNetConfig
from sdjax.core.devices import on_cpu
from sdjax.core.tree import Params
from sdjax.nn.attention import cross_keys_values
from sdjax.nn.conditioning import Chunks, Conditions, Time
from sdjax.nn.denoiser import Denoiser
from sdjax.nn.unet import UNet, time_shifts


@dataclass(frozen=True)
class UNetDenoiser:
    """The U-Net. Known before the loop are the text's keys and values and what the time adds in every resnet."""

    config: UNetConfig
    dtype: DTypeLike

    def precompute(self, params: Params, conditions: Conditions) -> Conditions:
        """Of a text in pieces, the cross-attentions' keys and values of each first piece; another stays as it is."""
        text = conditions.context
        if not isinstance(text, Chunks):
            return conditions
        first = jax.lax.map(lambda one: cross_keys_values(params, one, self.dtype), text.states[:, 0])
        return replace(conditions, context=replace(text, first=first))

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions) -> dict[str, jax.Array]:
        """What each row's time adds in every resnet, by its path: `r p c`, p is 1 where only the time is told."""
        told = conditions.beside_time()
        alike = timesteps.ndim == 1 and not jax.tree.leaves(told)
        times = timesteps if timesteps.ndim == 2 else timesteps[:, None]
        count = 1 if alike else jax.tree.leaves(conditions)[0].shape[0]
        # On a CPU each alone, so that the last bits depend on no other row or picture; see `one_by_one`.
        over = jax.lax.map if on_cpu() else lambda run, xs: jax.vmap(run)(xs)

        def one(now: Any) -> dict[str, jax.Array]:
            shifts = time_shifts(self.config, self.dtype, params, *jax.tree.map(lambda a: a[None], now))
            return jax.tree.map(lambda a: a[0], shifts)

        return over(lambda row: over(one, (row, told)), jnp.tile(times, (1, count // times.shape[1])))

    def __call__(self, params: Params, x: jax.Array, row: Time, conditions: Conditions) -> jax.Array:
        """x `b h w c` without the conditions' channels -> `b h w c`, float32."""
        return UNet(self.config, self.dtype).apply({"params": params}, x, row, conditions)


# Another network: its denoiser, by the type of its config.
DENOISERS: dict[type[Config], Callable[[Any, DTypeLike], Denoiser]] = {UNetConfig: UNetDenoiser}


def denoiser_of(config: Config, dtype: DTypeLike) -> Denoiser:
    """The denoiser that a network with this config is, computing in `dtype`. Raises KeyError where it is none."""
    return DENOISERS[type(config)](config, dtype)


def one_by_one(network: Any, inputs: Any, needed: jax.Array, parts: int) -> jax.Array:
    """`network` on each picture alone (with its unguided part): `(parts b) ...` -> `(parts b) ...`, float32.

    A CPU's matrix products round otherwise for another number of rows; so the latents are the same to the last bits
    in any batch, and it is no slower at Stable Diffusion's size. needed: bool, or [b] where every picture has a plan
    of its own; the network then runs for those pictures only.
    """
    pictures = jax.tree.map(lambda a: _by_picture(a, parts), inputs)
    if needed.ndim == 0:
        answers = jax.lax.map(network, pictures)
    else:
        like = jax.eval_shape(network, jax.tree.map(lambda a: a[0], pictures))
        skip = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        answers = jax.lax.map(lambda one: jax.lax.cond(one[0], network, lambda _: skip, one[1]), (needed, pictures))
    return answers.swapaxes(0, 1).reshape(-1, *answers.shape[2:])


def _by_picture(array: jax.Array, parts: int) -> jax.Array:
    """`(parts b) ... -> b parts ...`."""
    return array.reshape(parts, -1, *array.shape[1:]).swapaxes(0, 1)
