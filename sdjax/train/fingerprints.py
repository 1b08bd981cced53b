"""Fingerprints: a checksum of an array's bits that is the same over any number of devices.

    f(x) = sum_i m(i) x_i  mod 2^32,    x_i the bits of number i, m(i) odd, and once more with other m        (1)

One changed x_i changes f, whatever it was, since an odd m has an inverse; of several, both sums stay as they were about
once in 2^64 times. A sum does not ask in how many pieces an array lies: (1) is computed where the numbers are.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

SALTS = (0x9E3779B9, 0x85EBCA6B)  # one for each of equation 1's two sums


def fingerprints(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Equation 1 for every leaf, as 16 hexadecimal digits."""
    alike: dict[Any, list[str]] = {}
    for name, leaf in leaves.items():
        alike.setdefault((leaf.shape, str(leaf.dtype), getattr(leaf, "sharding", None)), []).append(name)
    found: dict[str, str] = {}
    for names in alike.values():  # one program after the other: XLA's collectives on a CPU lock each other out
        sums = jax.device_get(_sums([leaves[name] for name in names]))
        found |= {name: "".join(f"{int(one):08x}" for one in row) for name, row in zip(names, sums, strict=True)}
    return found


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.stack([_sum(leaf, salt) for salt in SALTS]) for leaf in leaves])


@partial(jax.jit, static_argnums=1)  # within _sums: leaves of one shape are traced once
def _sum(leaf: jax.Array, salt: int) -> jax.Array:
    """One sum of equation 1; the place i is made of the axes' own places, for a cut leaf is not to be gathered."""
    if leaf.dtype.itemsize == 1:
        bits = leaf.astype(jnp.uint8)
    else:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32)
    place, stride = jnp.full(bits.shape, salt, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        step = jnp.uint32(stride % 2**32)
        place, stride = place + step * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis), stride * bits.shape[axis]
    place = (place ^ (place >> 16)) * jnp.uint32(0x7FEB352D)
    place = (place ^ (place >> 15)) * jnp.uint32(0x846CA68B) | jnp.uint32(1)
    return jnp.sum(place * bits.astype(jnp.uint32), dtype=jnp.uint32)
