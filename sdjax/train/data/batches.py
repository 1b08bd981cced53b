"""Batches: the batch of any step, as `sdjax.train.objective` describes it; plain NumPy.

    batch(n) = f(data, seed, n)                                                                             (1)

Nothing is kept from one step to the next. A run that goes on from step n has the batches that it would have had, and
every host of several makes its own rows of the same batch. `order` says which pictures, `pictures` how they are cut,
`texts` what is said of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdjax.train.architecture import Architecture
from sdjax.train.data.buckets import Buckets, Size
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crop, Crops
from sdjax.train.data.moments import Moments
from sdjax.train.data.order import Order, Places
from sdjax.train.data.pictures import Pictures
from sdjax.train.data.scan import Dataset
from sdjax.train.data.states import States
from sdjax.train.data.texts import Texts, Tokenise


@dataclass(frozen=True)
class Form:
    """What a model wants in a batch.

    Attributes:
      factor: pixels per latent. time_ids: whether the model is told sizes and crops (SDXL).
      zeros_for_empty: whether a caption that is left out is zeros (SDXL), or the empty text.
    """

    factor: int = 8
    time_ids: bool = False
    zeros_for_empty: bool = False

    @classmethod
    def of(cls, architecture: Architecture) -> "Form":
        """That of a model."""
        return cls(architecture.vae.factor, architecture.takes_pooled, architecture.zeros_for_empty)


@dataclass(frozen=True, eq=False)
class Batches:
    """See above. Raises ValueError for a bucket that the VAE cannot encode, for a share that does not divide a batch.

    Attributes:
      tokens: texts as arrays, as `captions.Tokens(tokenizers)`.
      size: b, of the whole batch, on all processes together.
      ground: the colour under transparent parts. opaque_only: whether these do not count in the loss.
      moments, states: made beforehand, in place of pixels and ids.
      share: (process, number of processes): its rows of the batch, `b / number` that follow one another.
    """

    dataset: Dataset
    tokens: Tokenise
    buckets: Buckets
    size: int
    seed: int = 0
    form: Form = Form()
    crops: Crops = Crops()
    captions: Captions = Captions()
    ground: str = "white"
    opaque_only: bool = False
    moments: Moments | None = None
    states: States | None = None
    share: tuple[int, int] = (0, 1)
    pictures: Pictures = field(init=False, repr=False)
    texts: Texts = field(init=False, repr=False)
    sizes: tuple[Size, ...] = field(init=False)  # of the buckets in use
    order: Order = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.buckets.check(self.form.factor)
        rows_of(self.size, self.share)
        if self.moments is not None and self.crops.count is None:
            raise ValueError("crops that are drawn anew in each turn have no latents made beforehand; give variants")
        pictures = Pictures(self.dataset, self.crops, self.seed, self.ground, self.opaque_only, self.form.factor)
        texts = Texts(self.tokens, self.captions, self.form.zeros_for_empty, self.seed, self.states)
        own = [self.buckets.of(one.height, one.width) for one in self.dataset.items]
        sizes = tuple(sorted(set(own)))
        of_place = np.array([sizes.index(size) for size in own])[pictures.places]
        groups = tuple(np.flatnonzero(of_place == k) for k in range(len(sizes)))
        made = {"pictures": pictures, "texts": texts, "sizes": sizes, "order": Order(groups, self.size, self.seed)}
        for name, value in made.items():
            object.__setattr__(self, name, value)
        if isinstance(self.tokens, Tokens):
            self.tokens.check(texts.all(self.dataset.items))

    def batch(self, step: int) -> dict[str, Any]:
        """The rows of this process of a step's batch. Raises ValueError, OSError where a picture is no longer there."""
        return self.rows(step, *rows_of(self.size, self.share))

    def rows(self, step: int, start: int, stop: int) -> dict[str, Any]:
        """Some rows of a step's batch."""
        places = self.order.places(step)
        return self.arrays(places, self.sizes[places.bucket], start, stop)

    def arrays(self, places: Places, target: Size, start: int, stop: int) -> dict[str, Any]:
        """Rows of a batch of the pictures in some places, cut to a size."""
        numbers, turns = places.numbers[start:stop].tolist(), places.turns[start:stop].tolist()
        crops = [self.pictures.crop(place, turn, target) for place, turn in zip(numbers, turns, strict=True)]
        rows = [self._row(place, crop) for place, crop in zip(numbers, crops, strict=True)]
        made: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        items = map(self.pictures.item, numbers)
        texts = [self.texts.text(*one) for one in zip(items, numbers, turns, strict=True)]
        if self.form.time_ids:
            made["time_ids"] = np.array([crop.time_ids for crop in crops], np.float32)
        return made | self.texts.arrays(texts)

    def crops_of(self, sizes: Sequence[Size] = ()) -> Iterator[tuple[int, Crop]]:
        """(place, crop) of every variant of every picture, at its bucket's size or at all of `sizes`: see `Moments`."""
        for bucket, group in enumerate(self.order.buckets):
            for place in group.tolist():
                for variant in range(self.crops.count or 1):
                    for size in sizes or (self.sizes[bucket],):
                        yield place, self.pictures.crop(place, variant, size)

    def summary(self) -> list[str]:
        """What the data is, in lines: how many pictures, which sizes they are brought to, how long an epoch is."""
        items, passes = self.dataset.items, len(self.pictures.places)
        small = sum(max(np.divide(self.buckets.of(i.height, i.width), (i.height, i.width))) > 1 for i in items)
        epoch = passes / self.size
        lines = [f"{len(items)} pictures, {len(self.dataset.rejects)} rejects; {passes} in a pass, {epoch:.1f} steps"]
        lines += [
            f"  {width} x {height}: {len(group)}"
            for (height, width), group in zip(self.sizes, self.order.buckets, strict=True)
        ]
        twice = len(items) - len({one.digests["image"] for one in items})
        lines += [f"  {small} are smaller than that and are enlarged"] if small else []
        return lines + ([f"  {twice} are the same, byte by byte, as another"] if twice else [])

    def _row(self, place: int, crop: Crop) -> dict[str, np.ndarray]:
        made = self.pictures.arrays(place, crop, pixels=self.moments is None)
        if self.moments is not None:
            made["moments"] = self.moments.read(self.pictures, place, crop)
            if self.pictures.has("rejected"):
                made["rejected"] = self.moments.read(self.pictures, place, crop, "rejected")
        return made


def rows_of(size: int, share: tuple[int, int]) -> tuple[int, int]:
    """The rows start .. stop of a batch of `size` that are a process's share. Raises ValueError."""
    process, number = share
    if not 0 <= process < number or size < 1 or size % number:
        raise ValueError(
            f"a batch of {size} cannot be shared by {number} processes (this one is {process}); give a multiple"
        )
    own = size // number
    return process * own, (process + 1) * own
