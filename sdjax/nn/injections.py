"""What other networks add inside a U-Net while it runs, for b pictures.

    skips, middle    a ControlNet's: to every output of the way down, as the way up reads it, and to the middle's
                     (Zhang et al. 2023, arXiv:2302.05543, section 3.1); the way down itself stays as it is
    levels           a T2I-Adapter's: into the way down, so that both the skips and what follows change
                     (Mou et al. 2023, arXiv:2302.08453, equation 1)
    images           an IP-Adapter's: a second attention beside that to the text, with the same queries
                     (Ye et al. 2023, arXiv:2308.06721, equation 5)
    before           a ControlNet-LLLite's: what is called with the inputs of layers (`linear.put_before`)

Several networks add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from sdjax.core.tree import Path

Masks = Mapping[str, jax.Array]  # where something acts, float32 `b l` by the number of places l of a level, as text
Residuals = tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageTokens:
    """A picture as an IP-Adapter has it: keys and values of every cross-attention, and how strongly each counts.

    Attributes:
      keys_values: by the attention's path, `b m d` each. scale: by the same, float32 `b`. masks: where it counts.
    """

    keys_values: Mapping[str, tuple[jax.Array, jax.Array]]
    scale: Mapping[str, jax.Array]
    masks: Masks

    def weight(self, path: str, places: int) -> jax.Array:
        """How much the attention at `path` counts at each of its places, float32 `b l`."""
        return self.scale[path][:, None] * self.masks[str(places)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Injections:
    """See above; what is None or empty adds nothing.

    Attributes:
      skips: one for each output of the way down, finest first, `b h w c` (or `b 1 1 c`). middle: as those.
      levels: one for each level, and where there is one more, for the middle.
      images: pictures that cross-attention looks at. before: of each network, what is called before which layer.
    """

    skips: Residuals | None = None
    middle: jax.Array | None = None
    levels: Residuals | None = None
    images: tuple[ImageTokens, ...] = ()
    before: tuple[Mapping[Path, Any], ...] = ()

    def __add__(self, other: "Injections") -> "Injections":
        return Injections(
            _added(self.skips, other.skips),
            _added(self.middle, other.middle),
            _added(self.levels, other.levels),
            self.images + other.images,
            self.before + other.before,
        )

    def level(self, number: int) -> jax.Array | None:
        """What is added on a level, or where `number` is that of the levels in the middle; None for nothing."""
        return self.levels[number] if self.levels is not None and number < len(self.levels) else None


NOTHING = Injections()


def _added(one: Any, other: Any) -> Any:
    """The sum of two trees of one structure, of which either may be None."""
    if one is None or other is None:
        return other if one is None else one
    return jax.tree.map(lambda a, b: a + b, one, other)
