"""DreamBooth: a thing on a few pictures, and pictures of its class, so that the class is not forgotten.

    loss = mean_i L(instance_i)  +  p mean_c L(class_c)                                                     (1)

(Ruiz et al. 2022, arXiv:2208.12242, equation 2.) Both are in one batch of n_i + n_c. As the loss of a batch is the mean
over its pictures, times their `weight`, equation 1 is that of the weights

    (n_i + n_c) / n_i  for an instance,     p (n_i + n_c) / n_c  for one of the class.                       (2)

The mean over both at once would count the instance half. The pictures of the class, which a model has mostly painted
itself at one size, are cut to the size that the instances of a step have.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sdjax.train.data.batches import Batches, rows_of
from sdjax.train.data.order import Order, Places
from sdjax.train.objective import size as size_of


@dataclass(frozen=True, eq=False)
class DreamBooth:
    """Batches of instances, then pictures of the class.

    Attributes:
      prior: p. share: (process, number of processes), of the batch of both; those of the two are not looked at.
    """

    instance: Batches
    class_: Batches
    prior: float = 1.0
    share: tuple[int, int] = (0, 1)
    order: Order = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.prior < float("inf"):
            raise ValueError(f"the weight of the class must be at least 0, not {self.prior}")
        rows_of(self.size, self.share)
        alike = (
            lambda b: b.form,
            lambda b: b.pictures.has("map"),
            lambda b: b.moments is None,
            lambda b: b.states is None,
        )
        if any(of(self.instance) != of(self.class_) for of in alike):
            raise ValueError(
                "instances and pictures of the class go into one batch: both or neither have maps, latents and text "
                "states made beforehand, and both are for one model"
            )
        everything = np.arange(len(self.class_.pictures.places))
        object.__setattr__(self, "order", Order((everything,), self.class_.size, self.class_.seed))

    @property
    def size(self) -> int:
        """Of the whole batch, n_i + n_c."""
        return self.instance.size + self.class_.size

    def batch(self, step: int) -> dict[str, Any]:
        """The rows of this process of a step's batch. Raises as `Batches.batch`."""
        start, stop = rows_of(self.size, self.share)
        return self.rows(step, start, stop)

    def rows(self, step: int, start: int, stop: int) -> dict[str, Any]:
        """Some rows of a step's batch, with their `weight` `b`, equation 2."""
        instances, count = self.instance.size, self.class_.size
        places = self.instance.order.places(step)
        size = self.instance.sizes[places.bucket]
        parts = []
        if start < instances:
            parts.append(self.instance.arrays(places, size, start, min(stop, instances)))
        if stop > instances:
            own = Places(0, *self.order.stream(0, step * count, count))
            parts.append(self.class_.arrays(own, size, max(start - instances, 0), stop - instances))
        weight = np.repeat([self.size / instances, self.prior * self.size / count], [instances, count])
        if self.instance.pictures.weighted or self.class_.pictures.weighted:  # without a mask everything counts
            ones = np.ones((stop - start, *(side // self.instance.form.factor for side in size), 1), np.float32)
            parts = [{"weights": ones[: size_of(part)]} | part for part in parts]
        made = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return made | {"weight": weight[start:stop].astype(np.float32)}
