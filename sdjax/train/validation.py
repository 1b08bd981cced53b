"""Validation: the same noise at the same levels every time, so that what changes is the model.

    v_k = mean over pictures of |f(x, t_k) - target|^2,    t_k in the middle of the k-th of n bands of timesteps    (1)

A training loss mostly says which timesteps a batch had: errors differ a hundredfold from the first level to the last.
(1) has neither that noise nor that of e, and no weighting, so runs with other weightings compare by it. It is the
finest measure there is of one step's progress, and says where it is made: layouts are decided in the noisy bands,
texture in the others. It is taken on the averaged parameters, which are what is shipped.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.train.losses.denoising import Denoising
from sdjax.train.losses.levels import count
from sdjax.train.losses.noising import Noising
from sdjax.train.objective import Batch, Metrics, mean, picture_keys, size

BANDS = 16


def band_timesteps(total: int, bands: int = BANDS) -> np.ndarray:
    """t_k of equation 1, int32 `k`: of `total` timesteps the middle of each band. Raises ValueError beyond 1..total."""
    if not 1 <= bands <= total:
        raise ValueError(f"{total} timesteps have from 1 to {total} bands, not {bands}")
    return ((np.arange(bands) + 0.5) * total / bands).astype(np.int32)


def band_losses(
    objective: Denoising, params: Mapping[str, Any], batch: Batch, key: jax.Array, bands: int = BANDS
) -> jax.Array:
    """The squared errors of equation 1, float32 `k b`: of each band and picture, for means and paired tests.

    Pure: jit it with `objective` and `bands` static. The noise is plain whatever the objective trains with, another one
    in each band, and the same for the same key; a set of several batches gives each a key of its own. One band is in
    memory at a time. Raises ValueError as `band_timesteps`.
    """
    plain = replace(objective, noising=Noising(), dream=None)
    times = jnp.asarray(band_timesteps(count(objective.architecture), bands))

    def one(band: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, t = band
        keys = picture_keys(jax.random.fold_in(key, number), size(batch))
        return plain.errors(params, {**batch, "keys": keys, "timesteps": jnp.full(size(batch), t)})[1]

    return jax.lax.map(one, (jnp.arange(bands), times))


def band_metrics(losses: jax.Array, batch: Batch) -> Metrics:
    """What to report of `band_losses` `k b`: "validation", the mean of all; "validation_00" .., that of each band."""
    valid = {"valid": batch["valid"]} if "valid" in batch else {}
    bands = jax.vmap(lambda each: mean(each, valid)[0])(losses)
    return {"validation": jnp.mean(bands)} | {f"validation_{k:02d}": bands[k] for k in range(len(bands))}
