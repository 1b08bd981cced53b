"""The data of a run: from the flags to `batch(step)`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sdjax.train.data import buckets, sources
from sdjax.train.data.batches import Batches, Form
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crops
from sdjax.train.data.dreambooth import DreamBooth
from sdjax.train.data.moments import Moments
from sdjax.train.data.order import Places
from sdjax.train.data.scan import Dataset, scan
from sdjax.train.data.states import States
from sdjax.train.data.store import digest
from sdjax.train.data.texts import Tokenise

from experiments.train.model import Model

Batch = Callable[[int], dict[str, Any]]
REJECTS, CACHE = "rejects.txt", "cache"


@dataclass(frozen=True, eq=False)
class Material:
    """Pictures with captions, as a run takes them.

    Attributes:
      batches: of the pictures themselves. whole: those, or both them and their class's.
    """

    batches: Batches
    whole: Batches | DreamBooth

    @property
    def batch(self) -> Batch:
        """The batch of a step."""
        return self.whole.batch

    @property
    def cached(self) -> tuple[bool, bool]:
        """Whether latents, and whether states of texts, are made beforehand: then no such network takes part."""
        return self.batches.moments is not None, self.batches.states is not None

    @property
    def fingerprint(self) -> Any:
        """What of the data is a run's."""
        parts = [self.whole.instance, self.whole.class_] if isinstance(self.whole, DreamBooth) else [self.whole]
        return [part.dataset.fingerprint for part in parts]


def read(
    values: Any, model: Model, tokens: Tokenise | None, texts_learn: bool, report: Callable[[str], None]
) -> Material:
    """Scans the pictures, writes rejects into the run's folder, and encodes what stays the same.

    tokens: other than the model's own tokenizers. Raises ValueError, OSError, FileNotFoundError.
    """
    if not values.data:
        raise ValueError("--data is missing: a folder of pictures with captions")
    caches = _caches(values, model, texts_learn or tokens is not None)
    make = partial(_batches, values, model, tokens or Tokens(model.tokenizers), caches)
    dataset = _scanned(values, values.data, values.caption, values.maps, report)
    if not values.class_data:
        batches = make(dataset, values.batch, values.trigger)
        _fill(batches, model, report)
        return Material(batches, batches)
    count = values.class_batch or values.batch // 2
    if not 0 < count < values.batch:
        raise ValueError(f"--class_batch: of a batch of {values.batch}, 1 to {values.batch - 1} can be of the class")
    of_class = _scanned(values, values.class_data, values.class_caption, None, report)
    instance, class_ = make(dataset, values.batch - count, values.trigger), make(of_class, count, "")
    for batches in (instance, class_):
        _fill(batches, model, report, instance.sizes)
    return Material(instance, DreamBooth(instance, class_, values.prior))


def buckets_of(values: Any, model: Model) -> Buckets:
    """The sizes that pictures are brought to."""
    side = values.resolution or model.sd.networks.spec.side
    if values.buckets == "square":
        return buckets.square(side)
    if values.buckets == "sdxl":
        return buckets.sdxl()
    return buckets.novelai() if values.buckets == "novelai" else buckets.kohya(side)


def _scanned(values: Any, path: str, caption: str | None, maps: str | None, report: Callable[[str], None]) -> Dataset:
    masks = values.masks if path == values.data else None
    dataset = scan(sources.find(path, caption, maps=maps, masks=masks), report=report)
    if dataset.rejects:
        file = Path(values.out) / REJECTS
        dataset.write_rejects(file)
        report(f"{path}: {len(dataset.rejects)} pictures are not taken, see {file}; the first: {dataset.rejects[0][0]}")
    return dataset


def _caches(values: Any, model: Model, texts_learn: bool) -> dict[str, Any]:
    """Where latents and states are kept; none of what differs from step to step or learns."""
    if not values.cache:
        return {}
    folder, made = Path(values.out) / CACHE, {}
    if not values.random_crop:
        made["moments"] = Moments(folder, digest(model.params["vae"]))
    if not (texts_learn or values.shuffle_tags):
        encoders = [model.params[tower.component] for tower in model.architecture.texts]
        made["states"] = States(folder, digest(encoders))
    return made


def _batches(
    values: Any, model: Model, tokens: Tokenise, caches: dict[str, Any], dataset: Dataset, size: int, trigger: str
) -> Batches:
    prefix = f"{trigger} " if trigger else ""
    return Batches(
        dataset,
        tokens,
        buckets_of(values, model),
        size,
        values.seed,
        Form.of(model.architecture),
        Crops(values.random_crop, values.flip),
        Captions(values.caption_dropout, values.shuffle_tags, values.keep_tags, prefix=prefix),
        values.ground,
        values.opaque_only,
        **caches,
    )


def _fill(batches: Batches, model: Model, report: Callable[[str], None], sizes: tuple[Any, ...] = ()) -> None:
    """Encodes what is not there yet."""
    if batches.moments is not None:
        made = batches.moments.fill(batches.pictures, batches.crops_of(sizes), model.encode_pictures, report=report)
        if made:
            report(f"{made} crops encoded, kept in {batches.moments.folder}")
    if batches.states is not None:
        texts = batches.texts.all(batches.dataset.items)
        batches.states.fill(texts, batches.tokens, model.encode_texts)


def unprompted(batches: Batches, count: int) -> dict[str, Any]:
    """What stands for no text, `count` times: ids, or states made beforehand."""
    row = batches.texts.arrays([None] * count)
    return {name: leaf for name, leaf in row.items() if name in ("ids", "context", "pooled", "empty")}


def fixed(batches: Batches, count: int) -> dict[str, Any]:
    """The first `count` pictures, for a loss that is compared over a run: the middle crop of each, and its caption."""
    sizes = batches.sizes
    bucket = int(np.argmax([len(own) for own in batches.order.buckets]))
    numbers = batches.order.buckets[bucket][:count]
    places = Places(bucket, numbers, np.zeros(len(numbers), np.int64))
    return batches.arrays(places, sizes[bucket], 0, len(numbers))
