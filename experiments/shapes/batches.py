"""What the U-Net of the shapes model learns from, step by step: encoded pictures, texts, and where the error counts.

Latents of an object weigh OBJECT times as much as those of the flat ground, which is most of a picture and soon learnt.
One caption in ten is empty, so that guidance works. Two objects, which are harder than one, soon prevail: their part of
a batch grows from the first to the second number of DOUBLE over so many steps as the third says.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from sdjax.core.files import write

EMPTY = 0.1
OBJECT = 3.0
DOUBLE = (0.3, 0.75, 2000)
APART = 1.2
"""Least distance of a latent from the ground's that makes it an object's."""

Encode = Callable[[np.ndarray], jax.Array]
"""The text encoder: ids `b l` to hidden states `b l d`."""


def object_weights(latents: np.ndarray, weight: float = OBJECT) -> np.ndarray:
    """Weights float32 [b, h, w, 1], mean 1 in each picture: `weight` where latents [b, h, w, c] are not the ground's.

    The ground's latent is the median of the second ring from outside: the first looks different for the padding at the
    picture's edge, the rest may be full of an object.
    """
    latents = latents.astype(np.float32)
    b, _, _, c = latents.shape
    inner = latents[:, 1:-1, 1:-1]
    ring = [inner[:, 0], inner[:, -1], inner[:, 1:-1, 0], inner[:, 1:-1, -1]]
    ground = np.median(np.concatenate([side.reshape(b, -1, c) for side in ring], axis=1), axis=1)
    apart = np.linalg.norm(latents - ground[:, None, None], axis=-1, keepdims=True) > APART
    weights = np.where(apart, np.float32(weight), np.float32(1))
    return weights / weights.mean((1, 2, 3), keepdims=True)


class Pictures:
    """The encoded pictures in memory, and the batch of any step."""

    def __init__(
        self,
        folder: Path,
        encode: Encode,
        empty_ids: np.ndarray,
        *,
        batch: int,
        seed: int,
        object_weight: float = OBJECT,
    ) -> None:
        self.pools = [pool(folder, things) for things in (1, 2)]
        for part in self.pools:
            part["weights"] = object_weights(part["latents"], object_weight)
        self.encode, self.empty_ids, self.size, self.seed = encode, empty_ids, batch, seed

    def batch(self, n: int) -> dict[str, Any]:
        """Step n's batch, as `sdjax.train.losses.denoising` takes it."""
        rng = np.random.default_rng([self.seed, n])
        first, later, until = DOUBLE
        double = rng.binomial(self.size, first + (later - first) * min(1.0, n / until))
        counts = (self.size - double, double)
        picked = [self._pick(rng, pool, count) for pool, count in zip(self.pools, counts, strict=True)]
        joined = {name: np.concatenate([part[name] for part in picked]) for name in picked[0]}
        order = rng.permutation(self.size)  # timesteps are stratified by place, so a place must not tell the kind
        ids, latents, weights = (joined[name][order] for name in ("ids", "latents", "weights"))
        ids[rng.random(self.size) < EMPTY] = self.empty_ids
        return {"latents": latents, "context": self.encode(ids), "weights": weights}

    def _pick(self, rng: np.random.Generator, pool: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        chosen = rng.integers(len(pool["ids"]), size=count)
        return {name: values[chosen] for name, values in pool.items()}


def pool(folder: Path, things: int) -> dict[str, np.ndarray]:
    """All encoded pictures of so many things: "latents" float16 [n, 16, 16, 4] and "ids" int32 [n, l].

    Raises:
        ValueError: the folder holds none.
    """
    paths = sorted(folder.glob(f"things{things}_*.npz"))
    if not paths:
        raise ValueError(
            f"--latents={folder}: no pictures of {things} objects there; run experiments.shapes.encode first"
        )
    files = [arrays(path, ("latents", "ids")) for path in paths]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0]}


def write_arrays(path: Path, values: dict[str, Any]) -> None:
    """Writes an .npz file whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    write(buffer.getbuffer(), path, "the arrays")


def arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file.

    Raises:
        ValueError: the file is missing or damaged, or holds others.
    """
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); delete it and encode the pictures again") from error
