"""Pictures too large for the autoencoder at once: the whole picture's numbers, computed tile by tile.

A tile with a margin as wide as the convolutions reach gives what the whole picture gives there, but for one thing:

    y = scale (x - mean) / sqrt(variance + eps) + bias        mean and variance over the whole picture          (1)

So the moments of every GroupNorm are measured before it is used. Through layers with g norms the tiles go g + 1 times:
the i-th time as far as norm i, with the moments of those before it, and what arrives there is added up; the last time
to the end. Two parts A and B of a picture, of n numbers each with deviations' squares S, add up to

    mean = mean_A + d n_B / n,    S = S_A + S_B + d^2 n_A n_B / n,    d = mean_B - mean_A,    n = n_A + n_B      (2)

(Chan, Golub & LeVeque 1983, The American Statistician 37(3), equation 2.1), which loses no digits. The result is that
of the whole picture to rounding, so there are no seams to blend.

Layers run whole where their picture is small enough. The others are cut into sections, each from a picture that is
held whole to the next: short sections repeat less, long ones hold less.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from sdjax.config import VaeConfig
from sdjax.nn.layers import GroupNorm, Moments
from sdjax.nn.vae import Autoencoder, Layer, Layers, Posterior, decoder_layers, encoder_layers

Sums = tuple[jax.Array, jax.Array, jax.Array]  # of equation 2: n, and `b g` each the mean and S
# A part of a picture and moments of the first norms -> the layers' result, and what arrived at each norm.
Network = Callable[[jax.Array, Sequence[Moments]], tuple[jax.Array, list[jax.Array]]]

NORMS = {"resnet": 2, "head": 1}  # none in the other kinds of layer
REACH = {"resnet": 2}  # one pixel for each 3 x 3 convolution; 1 in the other kinds


@dataclass(frozen=True)
class Limits:
    """What is too large.

    Attributes:
      whole: numbers in one picture that a layer may take or give in one piece. 2^28 are those of the last level of
        Stable Diffusion's decoder at 1024 x 1024, 1 GiB in float32.
      held: numbers in one picture that is held between two sections. One from level to level is held always.
      tile: pixels of a tile along an axis, without its margin.
    """

    whole: int = 2**28
    held: int = 2**29
    tile: int = 256


@dataclass(frozen=True)
class Section:
    """Layers that follow one another, run `tiled` or whole. Tiled, only the first may be "up", the last "down"."""

    layers: tuple[Layer, ...]
    tiled: bool

    @property
    def norms(self) -> int:
        """How many GroupNorms they have."""
        return sum(NORMS.get(layer.kind, 0) for layer in self.layers)

    @property
    def scales(self) -> tuple[int, int]:
        """Pixels, before and after, of what is a pixel at the coarser end."""
        return (2 if self.layers[-1].kind == "down" else 1), (2 if self.layers[0].kind == "up" else 1)


@dataclass(frozen=True)
class Axis:
    """An axis of `size` pixels, counted at a section's coarser end, in windows: a core of the tile and its margin.

    All windows are of one size and lie within the picture; so do the cores, the last of which therefore repeats
    some of what the one before it has.
    """

    size: int
    core: int
    margin: int

    @property
    def window(self) -> int:
        """Pixels of a window."""
        return min(self.size, self.core + 2 * self.margin)

    def places(self) -> np.ndarray:
        """int32 [windows, 3]: where each begins, where its core does within it, how much of the core is repeated."""
        first = np.arange(0, self.size, self.core)
        core = np.minimum(first, self.size - self.core)
        window = np.clip(first - self.margin, 0, self.size - self.window)
        return np.stack([window, core - window, first - core], axis=-1).astype(np.int32)


def decode(
    config: VaeConfig, dtype: DTypeLike, params: Any, latents: jax.Array, limits: Limits = Limits()
) -> jax.Array:
    """`Autoencoder.decode`: latents `b h w c` (unscaled) -> pixels `b H W 3`, float32, not clipped."""
    x = Autoencoder(config, dtype).apply({"params": params}, latents, method="entry")
    return _run(decoder_layers(config), config, dtype, params["decoder"], x, limits).astype(jnp.float32)


def encode(config: VaeConfig, dtype: DTypeLike, params: Any, pixels: jax.Array, limits: Limits = Limits()) -> Posterior:
    """`Autoencoder.encode`: pixels `b H W 3` in [-1, 1] -> Posterior `b h w c`.

    Raises ValueError where H or W is no multiple of what the autoencoder shrinks by.
    """
    if any(size % config.factor for size in pixels.shape[1:3]):
        raise ValueError(f"pixels: height and width must be multiples of {config.factor}, not {pixels.shape[1:3]}")
    moments = _run(encoder_layers(config), config, dtype, params["encoder"], pixels, limits)
    return Autoencoder(config, dtype).apply({"params": params}, moments, method="posterior")


def sections(layers: Sequence[Layer], shape: tuple[int, int, int], limits: Limits) -> list[Section]:
    """How layers are run for a picture `h w c` that goes into them."""
    made: list[Section] = []
    h, w, c = shape
    ended = True
    for layer in layers:
        before = h * w * c
        h, w = (2 * h, 2 * w) if layer.kind == "up" else (h // 2, w // 2) if layer.kind == "down" else (h, w)
        c = layer.width
        tiled = layer.kind != "middle" and max(before, h * w * c) > limits.whole
        if ended or made[-1].tiled != tiled or (tiled and layer.kind == "up"):
            made.append(Section((layer,), tiled))
        else:
            made[-1] = Section((*made[-1].layers, layer), tiled)
        ended = tiled and (layer.kind == "down" or h * w * c <= limits.held)
    return made


def _run(
    layers: Sequence[Layer], config: VaeConfig, dtype: DTypeLike, params: Any, x: jax.Array, limits: Limits
) -> jax.Array:
    for section in sections(layers, x.shape[1:], limits):
        module = Layers(section.layers, config, dtype)
        if section.tiled:
            x = _by_tiles(section, partial(_through, module, params), x, config.norm_num_groups, dtype, limits.tile)
        else:
            x = module.apply({"params": params}, x)
    return x


def _through(module: Layers, params: Any, x: jax.Array, known: Sequence[Moments]) -> tuple[jax.Array, list[jax.Array]]:
    """A `Network`. What is computed after the first norm that is not known means nothing, and XLA leaves it out."""
    arrived: list[jax.Array] = []

    def step_in(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, GroupNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        arrived.append(args[0])
        return call(args[0], known[len(arrived) - 1] if len(arrived) <= len(known) else None)

    with nn.intercept_methods(step_in):
        return module.apply({"params": params}, x), arrived


def _by_tiles(section: Section, network: Network, x: jax.Array, groups: int, dtype: DTypeLike, tile: int) -> jax.Array:
    """`b h w c -> b h' w' width`: measures norm after norm, then writes the result."""
    before, after = section.scales
    margin = -(-sum(REACH.get(layer.kind, 1) for layer in section.layers) // max(before, after))
    axes = [_axis(size // before, max(1, tile // max(before, after)), margin) for size in x.shape[1:3]]
    windows = jnp.asarray(list(itertools.product(*(axis.places() for axis in axes))))
    window, core = (tuple(getattr(axis, part) for axis in axes) for part in ("window", "core"))

    def part(place: jax.Array) -> jax.Array:
        return _piece(x, place[:, 0], window, before)

    def add(known: Sequence[Moments], sums: Sums, place: jax.Array) -> tuple[Sums, None]:
        arrived = network(part(place), known)[1][len(known)]
        scale = arrived.shape[1] // window[0]
        return _added(sums, _piece(arrived, place[:, 1], core, scale), scale * place[:, 2]), None

    def write(out: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        y = _piece(network(part(place), known)[0], place[:, 1], core, after)
        row, column = after * (place[:, 0] + place[:, 1])
        return lax.dynamic_update_slice(out, y, (0, row, column, 0)), None

    known: list[Moments] = []
    nothing = jnp.zeros((x.shape[0], groups))
    for _ in range(section.norms):
        (count, mean, squares), _ = lax.scan(partial(add, tuple(known)), (jnp.zeros(()), nothing, nothing), windows)
        known.append((mean, squares / count))
    shape = (x.shape[0], *(after * axis.size for axis in axes), section.layers[-1].width)
    # Every number of it is overwritten. A constant would lie in memory from the program's beginning on.
    blank = jnp.broadcast_to((known[-1][0] if known else x).ravel()[0].astype(dtype), shape)
    return lax.scan(write, blank, windows)[0]


def _axis(size: int, most: int, margin: int) -> Axis:
    """An axis in as few cores of at most `most` pixels as there can be, all of them as small as that allows."""
    return Axis(size, -(-size // -(-size // most)), margin)


def _piece(x: jax.Array, start: jax.Array, size: tuple[int, ...], scale: int) -> jax.Array:
    """`size` of x `b h w c` from `start` on, both counted in `scale` pixels."""
    row, column = scale * start
    return lax.dynamic_slice(x, (0, row, column, 0), (x.shape[0], *(scale * n for n in size), x.shape[-1]))


def _added(sums: Sums, x: jax.Array, repeated: jax.Array) -> Sums:
    """Equation 2: a part `b h w c` of a picture, but for its first `repeated` rows and columns."""
    rows, columns = (jnp.arange(n) >= first for n, first in zip(x.shape[1:3], repeated, strict=True))
    new = (rows[:, None] & columns)[:, :, None, None]
    count, mean, squares = sums
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], mean.shape[-1], -1)
    more = jnp.sum(new, dtype=jnp.float32) * grouped.shape[-1]
    its_mean = jnp.sum(jnp.where(new, grouped, 0), axis=(1, 2, 4)) / more
    its_squares = jnp.sum(jnp.where(new, jnp.square(grouped - its_mean[:, None, None, :, None]), 0), axis=(1, 2, 4))
    total, apart = count + more, its_mean - mean
    return total, mean + apart * more / total, squares + its_squares + jnp.square(apart) * count * more / total
