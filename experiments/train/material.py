"""What a run learns from: the data of the flags, and the batch of every step.

Two kinds: pictures with captions (of a ControlNet with maps, of a preference with the picture that was not preferred,
of DreamBooth with pictures of the class); and prompts alone, for a model that makes its own pictures.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from experiments import _files
from experiments.train import processes
from experiments.train.model import Model
from sdjax.train.data import buckets, sources
from sdjax.train.data.batches import Batches, Form, rows_of
from sdjax.train.data.buckets import Buckets, Size
from sdjax.train.data.captions import Captions, Tokens
from sdjax.train.data.crops import Crops
from sdjax.train.data.dreambooth import DreamBooth
from sdjax.train.data.moments import Moments
from sdjax.train.data.order import Places
from sdjax.train.data.scan import Dataset, scan
from sdjax.train.data.sheets import sheet
from sdjax.train.data.states import States
from sdjax.train.data.texts import Tokenise

Report = Callable[[str], None]
REJECTS, CACHE = "rejects.txt", "cache"
TEXT = ("ids", "words", "context", "pooled", "empty")  # what of a batch says a caption
LARGEST = 1 << 24  # bytes of a file of prompts


class Material(Protocol):
    """What a run learns from."""

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step."""

    @property
    def cached(self) -> tuple[bool, bool]:
        """Whether latents, and whether states of texts, are made beforehand: then no such network takes part."""

    @property
    def captions(self) -> Iterable[str]:
        """All texts that are learnt from."""

    @property
    def fingerprint(self) -> Any:
        """What of it is a run's."""

    def summary(self) -> list[str]:
        """What it is, in lines."""

    def sheet(self) -> Image.Image | None:
        """What the model will see, where it sees pictures."""

    def unprompted(self, count: int) -> dict[str, Any]:
        """What stands for no text, `count` times: ids, or states made beforehand."""

    def fixed(self, count: int) -> dict[str, Any] | None:
        """So many pictures, the same every time; None where there are no pictures."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with captions.

    Attributes:
      batches: of the pictures themselves. whole: those, or both them and their class's.
      preserving: whether batches say which of their pictures are of the class, to be answered as before.
    """

    batches: Batches
    whole: Batches | DreamBooth
    preserving: bool = False

    def batch(self, step: int) -> dict[str, Any]:
        """See `Material`."""
        made = self.whole.batch(step)
        if self.preserving and isinstance(self.whole, DreamBooth):
            parts = [self.whole.instance.size, self.whole.class_.size]
            made["preserved"] = np.repeat(np.array([0, 1], np.float32), parts)[
                slice(*rows_of(self.whole.size, self.whole.share))
            ]
        return made

    @property
    def cached(self) -> tuple[bool, bool]:
        """See `Material`."""
        return self.batches.moments is not None, self.batches.states is not None

    @property
    def captions(self) -> Iterable[str]:
        """See `Material`."""
        return (text for item in self.batches.dataset.items for text in item.record.captions)

    @property
    def fingerprint(self) -> Any:
        """See `Material`."""
        parts = [self.whole.instance, self.whole.class_] if isinstance(self.whole, DreamBooth) else [self.whole]
        return [part.dataset.fingerprint for part in parts]

    def summary(self) -> list[str]:
        """See `Material`."""
        return self.batches.summary()

    def sheet(self) -> Image.Image:
        """See `Material`."""
        return sheet(self.batches)

    def unprompted(self, count: int) -> dict[str, Any]:
        """See `Material`."""
        row = self.batches.texts.arrays([None] * count)
        return {name: leaf for name, leaf in row.items() if name in TEXT}

    def fixed(self, count: int) -> dict[str, Any]:
        """See `Material`: of the largest bucket, the first crop of each with its caption."""
        groups = self.batches.order.buckets
        bucket = int(np.argmax([len(own) for own in groups]))
        numbers = groups[bucket][:count]
        places = Places(bucket, numbers, np.zeros(len(numbers), np.int64))
        made = self.batches.arrays(places, self.batches.sizes[bucket], 0, len(numbers))
        return made | ({"preserved": np.zeros(len(numbers), np.float32)} if self.preserving else {})


@dataclass(frozen=True, eq=False)
class Prompts:
    """Texts alone, one after the other."""

    texts: tuple[str, ...]
    tokens: Tokenise
    size: int
    share: tuple[int, int] = (0, 1)  # as of `Batches`

    def batch(self, step: int) -> dict[str, Any]:
        """See `Material`."""
        count, rows = len(self.texts), range(*rows_of(self.size, self.share))
        return dict(self.tokens([self.texts[(step * self.size + i) % count] for i in rows]))

    @property
    def cached(self) -> tuple[bool, bool]:
        """See `Material`."""
        return False, False

    @property
    def captions(self) -> Iterable[str]:
        """See `Material`."""
        return self.texts

    @property
    def fingerprint(self) -> Any:
        """See `Material`."""
        return list(self.texts)

    def summary(self) -> list[str]:
        """See `Material`."""
        return [f"{len(self.texts)} prompts"]

    def sheet(self) -> None:
        """See `Material`."""

    def unprompted(self, count: int) -> dict[str, Any]:
        """See `Material`."""
        return dict(self.tokens([""] * count))

    def fixed(self, count: int) -> None:
        """See `Material`."""


def read(values: Any, model: Model, tokens: Tokenise | None, texts_learn: bool, report: Report) -> Material:
    """What the flags say, scanned and encoded; rejects are listed in the run's folder.

    tokens: captions as arrays, where the model's tokenizers do not do. Raises ValueError, OSError, FileNotFoundError.
    """
    if values.prompts:
        return Prompts(_prompts(values.prompts), Tokens(model.tokenizers), values.batch, processes.share())
    caches = _caches(values, model, texts_learn or tokens is not None)
    make = partial(_batches, values, model, tokens or Tokens(model.tokenizers), caches)
    dataset = _scanned(
        values, "data", report, values.caption, maps=values.maps, masks=values.masks, rejected=values.rejected
    )
    if values.word and not any(values.word in text for item in dataset.items for text in item.record.captions):
        raise ValueError(f"--word={values.word} stands in none of the captions of {values.data}: nothing would learn")
    if not values.class_data:
        batches = make(dataset, values.batch, values.trigger, processes.share())
        _fill(batches, model, report)
        return Pictures(batches, batches)
    count = values.class_batch or values.batch // 2
    if not 0 < count < values.batch:
        raise ValueError(f"--class_batch={count}: of a batch of {values.batch} from 1 to {values.batch - 1} can be it")
    of_class = _scanned(values, "class_data", report, values.class_caption)
    instance, class_ = make(dataset, values.batch - count, values.trigger), make(of_class, count, "")
    _fill(instance, model, report)
    _fill(class_, model, report, instance.sizes)
    return Pictures(instance, DreamBooth(instance, class_, values.prior, processes.share()), preserving=values.preserve)


def buckets_of(values: Any, model: Model) -> Buckets:
    """The sizes that pictures are brought to."""
    side = values.resolution or model.sd.networks.spec.side
    kinds = {"square": lambda: buckets.square(side), "sdxl": buckets.sdxl, "novelai": buckets.novelai}
    return kinds.get(values.buckets, lambda: buckets.kohya(side))()


def _prompts(path: str) -> tuple[str, ...]:
    text = _files.read(path, "--prompts", LARGEST).decode("utf-8", "replace")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise ValueError(f"--prompts={path}: there is no prompt in it, one a line")
    return lines


def _scanned(values: Any, flag: str, report: Report, caption: str | None, **beside: str | None) -> Dataset:
    """The pictures that a flag names; what the scan saw is kept in the run's folder."""
    path, out = values[flag].value, Path(values.out)
    dataset = scan(sources.find(path, caption, **beside), kept=out / f"{flag}.json", report=report)
    file = out / f"{flag}_{REJECTS}"
    file.unlink(missing_ok=True)  # of an earlier start
    if dataset.rejects:
        dataset.write_rejects(file)
        report(f"{path}: {len(dataset.rejects)} pictures are not taken, see {file}; {': '.join(dataset.rejects[0])}")
    return dataset


def _caches(values: Any, model: Model, texts_learn: bool) -> dict[str, Any]:
    """Where latents and states are kept; none of what differs from step to step or learns."""
    folder, made = Path(values.out) / CACHE, dict[str, Any]()
    if values.cache and not values.random_crop:
        made["moments"] = Moments(folder, model.vae_encoder[1])
    if values.cache and not (texts_learn or values.shuffle_tags):
        made["states"] = States(folder, model.text_encoder[1])
    return made


def _batches(
    values: Any,
    model: Model,
    tokens: Tokenise,
    caches: dict[str, Any],
    dataset: Dataset,
    size: int,
    trigger: str,
    share: tuple[int, int] = (0, 1),
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
        share=share,
        **caches,
    )


def _fill(batches: Batches, model: Model, report: Report, sizes: tuple[Size, ...] = ()) -> None:
    """Encodes what is not there yet."""
    if batches.moments is not None:
        crops = batches.crops_of(sizes)
        made = batches.moments.fill(batches.pictures, crops, model.vae_encoder[0], report=report)
        if made:
            report(f"{made} crops encoded, kept in {batches.moments.folder}")
    if batches.states is not None:
        batches.states.fill(
            batches.texts.all(batches.dataset.items),
            batches.tokens,
            model.text_encoder[0],
        )
