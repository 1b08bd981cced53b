"""What a seed means, whatever this process told JAX: the same key, and the same numbers drawn by it.

    JAX's own setting                                        here
    jax_default_prng_impl, jax_random_seed_offset            keys are of Threefry, and made from the seed's bits
    jax_threefry_partitionable                               on, JAX's default: the other way gives other numbers
    jax_numpy_rank_promotion, jax_numpy_dtype_promotion      usual: how strict a program is with itself is its own say
    jax_debug_key_reuse                                      off: one key is given to several programs, each of which
                                                             takes a part of its own from it
    jax_debug_nans, jax_debug_infs                           off: what is NaN is made again or told (see `finite`); run
                                                             again with these, a program finds its arguments donated

A key that a user hands over is of the user's own kind, and so is what it draws, but for the last four entries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

IMPLEMENTATION = "threefry2x32"


def key(seed: Any) -> jax.Array:
    """`jax.random.key` as JAX has it by default: a seed 0 .. 2^64 - 1, or an array of them -> a key, or as many."""
    seeds = np.asarray(seed, np.uint64)
    words = np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=IMPLEMENTATION)


@contextmanager
def settled() -> Iterator[None]:
    """While programs are traced, compiled and run: the settings of the table above."""
    with (
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_key_reuse(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield
