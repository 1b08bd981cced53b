"""Seeds: whole numbers, and jax's keys, which are the same in two words of 32 bits.

A key of jax's own kind, threefry2x32, is 64 bits; so is a seed here, and the two are read as one:

    seed s  <->  key (s >> 32, s mod 2^32)

`jax.random.key(3)` is seed 3, and a key that came of `split` or `fold_in` is some large number. So the settings of a
picture, which hold whole numbers, make it again whichever of the two was given. A key is used as a seed is: picture i
draws from fold_in(key, i). Keys of other kinds (rbg, unsafe_rbg) have more bits, and their numbers change with the
machine: they are refused.
"""

from typing import Any

import jax
import numpy as np

from sdjax.core.keys import IMPLEMENTATION
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.request.checks import is_list, spread

MOST = 2**64 - 1


def plain(value: Any) -> Any:
    """`seed` as it was given, with every key in it as its whole number; a list where several keys were given.

    A key is one of `jax.random.key`, or an old one of `jax.random.PRNGKey`: uint32 with a last axis of two, as a jax
    array, or in a list or array with others of its kind. Raises ValueError for keys of another kind.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError("seed must be known before tracing: call generate outside of jit, vmap and grad")
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(value)) != IMPLEMENTATION:
            kind, remedy = jax.random.key_impl(value), f'jax.random.key(3, impl="{IMPLEMENTATION}"), or a whole number'
            raise ValueError(f"seed is a key of kind {kind}, and pictures are drawn by {IMPLEMENTATION}: give {remedy}")
        return _numbers(np.asarray(jax.random.key_data(value)))
    if isinstance(value, jax.Array):
        array = np.asarray(value)
        return _numbers(array) if _is_key(array) else array.tolist()
    if isinstance(value, np.ndarray):
        return _numbers(value) if value.ndim > 1 and _is_key(value) else value.tolist()
    if is_list(value):
        return [_one(entry) for entry in value]
    return value


def check(value: Any, count: int) -> list[int]:
    """One seed for all pictures, or one each; 0 to 2^64 - 1. Raises ValueError."""
    seeds = spread(value, count, "seed")
    for seed in seeds:
        if not is_number(seed, int | np.integer) or not 0 <= seed <= MOST:
            chance = "; for one by chance, random.randrange(2**32)" if seed is None or seed == -1 else ""
            raise ValueError(f"seed must be a whole number from 0 to {MOST} or a jax key, not {short(seed)}{chance}")
    return [int(seed) for seed in seeds]


def _one(entry: Any) -> Any:
    """An entry of a list: a key as its number, anything else as it is."""
    array = isinstance(entry, np.ndarray) and _is_key(entry)
    return plain(entry) if isinstance(entry, jax.Array) else _numbers(entry) if array else entry


def _is_key(array: np.ndarray) -> bool:
    return array.dtype == np.uint32 and array.ndim in (1, 2) and array.shape[-1] == 2


def _numbers(words: np.ndarray) -> Any:
    """Words `.. 2` as whole numbers: one, or a list of them."""
    if words.ndim > 2:
        raise ValueError(f"seed holds keys of shape {words.shape[:-1]}: give one, or a list with one for each picture")
    joined = [int(high) << 32 | int(low) for high, low in words.reshape(-1, 2)]
    return joined if words.ndim > 1 else joined[0]
