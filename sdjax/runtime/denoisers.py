"""The networks that the sampling loop can run, as `Denoiser`s; and on a CPU, how it runs them picture by picture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import Config, UNetConfig
from sdjax.core.devices import on_cpu
from sdjax.core.tree import Params, modules_named
from sdjax.nn.attention import cross_keys_values
from sdjax.nn.conditioning import Chunks, Conditions, KeysValues, Time
from sdjax.nn.denoiser import Steerable
from sdjax.nn.injections import NOTHING, Injections
from sdjax.nn.linear import put_before
from sdjax.nn.unet import UNet, time_shifts
from sdjax.nn.worn import Strengths, wearing

# The layers that the embedded time goes through before the blocks have it.
TIME_LAYERS = ("linear_1", "linear_2", "cond_proj", "time_emb_proj")


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
        first = first_keys_values(params, text, self.dtype, conditions.worn)
        return replace(conditions, context=replace(text, first=first))

    def per_row(self, params: Params, timesteps: jax.Array, conditions: Conditions) -> dict[str, jax.Array]:
        """What each row's time adds in every resnet, by its path: `r p c`, p is 1 where only the time is told."""
        told = conditions.beside_time()
        if not any("low_rank" in layer for _, layer in modules_named(params, TIME_LAYERS)):
            told = replace(told, worn=None)  # which reaches no layer of the time: all pictures are alike there

        def one(now: Any) -> dict[str, jax.Array]:
            t, told = jax.tree.map(lambda a: a[None], now)
            shifts = time_shifts(self.config, self.dtype, wearing(params, told.worn), t, told)
            return jax.tree.map(lambda a: a[0], shifts)

        return along_rows(one, timesteps, told, jax.tree.leaves(conditions)[0].shape[0])

    def __call__(
        self, params: Params, x: jax.Array, row: Time, conditions: Conditions, injected: Injections = NOTHING
    ) -> jax.Array:
        """x `b h w c` without the conditions' channels -> `b h w c`, float32. injected: by other networks."""
        own = reduce(put_before, injected.before, wearing(params, conditions.worn))
        return UNet(self.config, self.dtype).apply({"params": own}, x, row, conditions, injected)


def first_keys_values(params: Params, text: Chunks, dtype: DTypeLike, worn: Strengths | None = None) -> KeysValues:
    """A network's keys and values of every picture's first piece of text; each alone, for its bits."""

    def one(picture: tuple[jax.Array, Strengths | None]) -> KeysValues:
        return cross_keys_values(wearing(params, picture[1]), picture[0], dtype)

    return jax.lax.map(one, (text.states[:, 0], worn))


def along_rows(one: Callable[[Any], Any], timesteps: jax.Array, told: Any, count: int) -> Any:
    """`one((t, told))` for each row and picture, whose results are leaves `..`: a tree `r p ..`.

    timesteps: `r`, or `r b` where every picture has its own. told: leaves `count ..`, where count is b times the parts
    of a picture. p is 1 where neither differs, else the count.
    """
    alike = timesteps.ndim == 1 and not jax.tree.leaves(told)
    times = timesteps if timesteps.ndim == 2 else timesteps[:, None]
    # On a CPU each alone, so that the last bits depend on no other row or picture; see `one_by_one`.
    over = jax.lax.map if on_cpu() else lambda run, xs: jax.vmap(run)(xs)
    repeats = (1 if alike else count) // times.shape[1]
    return over(lambda row: over(one, (row, told)), jnp.tile(times, (1, repeats)))


# Another network: its denoiser, by the type of its config.
DENOISERS: dict[type[Config], Callable[[Any, DTypeLike], Steerable]] = {UNetConfig: UNetDenoiser}


def denoiser_of(config: Config, dtype: DTypeLike) -> Steerable:
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
