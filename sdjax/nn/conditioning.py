"""What a U-Net is told beside x and t, and the one object in which its blocks are handed all of it.

    Conditions    what the caller knows: text, pooled text and sizes, guidance scale, channels beside x, class
    Signals       those whole, and the time as the network has it inside

Both go down whole: a block hands on what it was handed, and only who reads a field knows of it. So a further condition
is a field of `Conditions` and the line that reads it; no signature in between names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.core import short
from sdjax.nn.injections import NOTHING, Injections, Masks
from sdjax.nn.layers import timestep_embedding
from sdjax.nn.worn import Strengths

Array = jax.Array | np.ndarray  # of the host, before it goes to where programs run
KeysValues = Mapping[str, tuple[jax.Array, jax.Array]]  # of every cross-attention, by module path, each `b l d`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunks:
    """A text of up to c pieces, each as long as the text encoder's rows (77 tokens), for b pictures.

    The number of pieces is data: a prompt of one costs nothing for those it does not have, and a longer prompt runs
    in the same program.

    Attributes:
      first: keys and values of every picture's first piece, the whole text of nearly every prompt; none before
        `Denoiser.precompute` has made them, and so long the network cannot run on it.
      states: `b c l e`, the text's hidden states. count: int32 `b`, how many of the c pieces there are.
    """

    first: KeysValues
    states: Array
    count: Array

    __repr__ = short.fields


# The text's hidden states `b l e`, the keys and values already made from them, or a text in pieces.
Context = jax.Array | KeysValues | Chunks
# The time embedded, `b d`; or, made from it before the run, what it adds in every resnet, by module path, `b c`.
Time = jax.Array | Mapping[str, jax.Array]


class Added(NamedTuple):
    """SDXL's second text input (`addition_embed_type: text_time`)."""

    pooled: jax.Array  # `b d`, the pooled and projected text
    time_ids: jax.Array  # `b i`: original size, crop, target size (base) or aesthetic score (refiner)

    def __repr__(self) -> str:
        return short.fields(self)


class Kinds(NamedTuple):
    """Of each of m maps that a Union looks at, for b pictures."""

    modes: Array  # int32 `b m`, the number of its kind, -1 where there is no map
    scales: Array  # float32 `b m`, how strongly it enters beside the others


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guide:
    """What one network is told that steers the U-Net from beside it, for b pictures: every leaf `b ..`.

    Attributes:
      features: what it made of the picture that it looks at, once a run; see `control.ControlNetwork.look`.
      scale: float32 `b n j`, how strongly each of the j things that it adds counts in each of the n rows of a plan.
      masks: where it counts.
      kinds: of each of m maps, for networks that know several. text: the keys and values that it has of the text's
        first piece, for networks that read the text.
    """

    features: Any = None
    scale: Array | None = None
    masks: Masks = field(default_factory=dict)
    kinds: Kinds | None = None
    text: KeysValues | None = None

    __repr__ = short.fields


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """All that a U-Net is told beside x and t, for b pictures: every leaf `b ...`."""

    context: Context
    added: Added | None = None
    guidance: jax.Array | None = None  # `b d`, see `guidance_embedding`
    channels: jax.Array | None = None  # `b h w c`, beside x: mask and masked picture, depth, picture to be edited ..
    class_labels: jax.Array | None = None  # int32 `b`: the upscaler's noise level
    worn: Strengths | None = None  # of what stands beside the network's kernels, `b ..`
    control: tuple[Guide, ...] = ()  # for each network that steers this one, what it is told

    __repr__ = short.fields

    def worn_alike(self) -> "Conditions":
        """The same for pictures that all wear the same, or for the parts of one: strengths without the axis b."""
        return replace(self, worn=jax.tree.map(lambda each: each[0], self.worn))

    def beside_time(self) -> "Conditions":
        """Those alone that tell on the embedded time, which may be made before the run; without any text."""
        return replace(self, context={}, channels=None, control=())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Signals:
    """All that the blocks inside a U-Net are told beside the picture, for b pictures."""

    time: Time
    conditions: Conditions
    injected: Injections = NOTHING  # by other networks


def guidance_embedding(scale: jax.Array, features: int) -> jax.Array:
    """Guidance scales `b` as sinusoids `b d`, for U-Nets distilled to know the scale (Meng et al., arXiv:2210.03142).

    As latent consistency models have it (Luo et al. 2023, arXiv:2310.04378): of 1000 (scale - 1), sines first.
    """
    return timestep_embedding(1000.0 * (scale - 1.0), features, flip_sin_to_cos=False, freq_shift=1.0)
