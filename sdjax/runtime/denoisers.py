"""How the U-Net is run within the sampling scan: what is known beforehand, and on a CPU one picture after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import UNetConfig
from sdjax.core.devices import on_cpu
from sdjax.core.jit import program
from sdjax.core.tree import Params
from sdjax.nn.attention import cross_keys_values
from sdjax.nn.conditioning import Chunks, Conditions, Time
from sdjax.nn.unet import UNet, time_shifts


def _unet(config: UNetConfig, dtype: DTypeLike, params: Params, x: jax.Array, t: Time, given: Conditions) -> jax.Array:
    return UNet(config, dtype).apply({"params": params}, x, t, given)


@program(static=(0,))
def precompute_kv(dtype: DTypeLike, params: Params, states: jax.Array, count: jax.Array) -> Chunks:
    """What of the text is the same at every step: the cross-attentions' keys and values of each first piece.

    states: `b c l e`, the text in up to c pieces; count: int32 `b`, how many there are.
    """
    first = jax.lax.map(lambda one: cross_keys_values(params, one, dtype), states[:, 0])
    return Chunks(first, states, count)


def _time_shifts(
    config: UNetConfig, dtype: DTypeLike, params: Params, timesteps: jax.Array, given: Conditions
) -> dict[str, jax.Array]:
    """What each row's time adds in every resnet, [r, p, c]: p is 1 where it is the same for all pictures.

    timesteps: [r], or [r, b].
    """
    told = given.beside_time()
    alike = timesteps.ndim == 1 and not jax.tree.leaves(told)
    times = timesteps if timesteps.ndim == 2 else timesteps[:, None]
    count = 1 if alike else jax.tree.leaves(given)[0].shape[0]
    # On a CPU each alone, so that the last bits depend on no other row or picture; see `_one_by_one`.
    over = jax.lax.map if on_cpu() else lambda run, xs: jax.vmap(run)(xs)

    def one(now: Any) -> dict[str, jax.Array]:
        shifts = time_shifts(config, dtype, params, *jax.tree.map(lambda a: a[None], now))
        return jax.tree.map(lambda a: a[0], shifts)

    return over(lambda row: over(one, (row, told)), jnp.tile(times, (1, count // times.shape[1])))


def _one_by_one(network: Any, inputs: Any, needed: jax.Array, parts: int) -> jax.Array:
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
