"""Moments: what the VAE makes of every crop of every picture, made beforehand and kept: mean and log-variance.

A step then draws its own latents from them. Latents drawn once and kept would make one draw's noise part of the data.
The VAE does not commute with flips and shifts, so each variant of a crop is encoded by itself; a data set whose crops
are drawn anew in each turn has too many.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from sdjax.images.pixels import from_uint8
from sdjax.train.data.buckets import Size
from sdjax.train.data.crops import Crop
from sdjax.train.data.pictures import Pictures
from sdjax.train.data.progress import Progress, Report
from sdjax.train.data.store import Store, key

Wanted = tuple[int, Crop, str]  # the crop of the picture in a place, or of what lies beside it: `Pictures.image`
Encode = Callable[[np.ndarray], Any]  # pixels `b H W 3` in [-1, 1] -> moments `b h w 2c`


@dataclass(frozen=True)
class Moments:
    """Kept in a folder. encoder: a digest of the VAE's parameters (`store.digest`)."""

    folder: Path
    encoder: str
    dtype: DTypeLike = np.float16

    @property
    def store(self) -> Store:
        """Where they are."""
        return Store(self.folder, "latents")

    def read(self, pictures: Pictures, place: int, crop: Crop, kind: str = "image") -> np.ndarray:
        """The moments `h w 2c` of a picture's crop, or of what lies beside it. Raises ValueError for none."""
        found = self.store.read(self._key(pictures, place, crop, kind))
        if found is None:
            name = pictures.item(place).record.name
            raise ValueError(
                f"{self.folder} has no latents of this crop of {name} by this VAE: they have to be made before the "
                "first step"
            )
        return found["moments"]

    def fill(
        self,
        pictures: Pictures,
        wanted: Iterable[tuple[int, Crop]],
        encode: Encode,
        size: int = 4,
        report: Report | None = None,
    ) -> int:
        """Makes the moments of crops (`Batches.crops_of`) where they are not there; returns how many were made.

        size: how many are encoded at a time; the last of each size are filled up, for one program a size.

        Raises ValueError where they are not finite, OSError.
        """
        missing: dict[Size, dict[str, Wanted]] = {}
        kinds = ("image", "rejected") if pictures.has("rejected") else ("image",)
        for place, crop in wanted:
            for kind in kinds:
                name = self._key(pictures, place, crop, kind)
                if not self.store.good(name):
                    missing.setdefault(crop.target, {})[name] = (place, crop, kind)
        done, total = 0, sum(map(len, missing.values()))
        progress = Progress(total, report)
        for entries in missing.values():
            named = list(entries.items())
            for start in range(0, len(named), size):
                self._encode(pictures, named[start : start + size], encode, size)
                done += len(named[start : start + size])
                progress(done, "crops encoded")
        return total

    def _encode(self, pictures: Pictures, some: list[tuple[str, Wanted]], encode: Encode, size: int) -> None:
        pixels = np.stack([from_uint8(np.asarray(pictures.image(*own))) for _, own in some])
        padded = np.concatenate([pixels, *[pixels[-1:]] * (size - len(some))])
        moments = np.asarray(jax.device_get(encode(padded)))
        for (name, (place, _, _)), one in zip(some, moments, strict=False):
            self.store.write(name, {"moments": one}, self.dtype, pictures.item(place).record.name)

    def _key(self, pictures: Pictures, place: int, crop: Crop, kind: str) -> str:
        item = pictures.item(place)
        cut = (crop.scaled, crop.top, crop.left, crop.target, crop.flip)
        return key("moments", item.digests[kind], self.encoder, cut, pictures.ground, np.dtype(self.dtype).name)
