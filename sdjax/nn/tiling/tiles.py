"""Pictures too large for the autoencoder at once: the whole picture's numbers, computed tile by tile.

A tile with a margin as wide as the convolutions reach gives what the whole picture gives there, but for one thing:

    y = scale (x - mean) / sqrt(variance + eps) + bias        mean and variance over the whole picture          (1)

So the moments of every GroupNorm are measured before it is used. Through layers with g norms the tiles go g + 1 times:
the i-th time as far as norm i, with the moments of those before it, and what arrives there is added up; the last time
to the end. The result is that of the whole picture to rounding, so there are no seams to blend.

Layers run whole where their picture is small enough. The others are cut into sections, each from a picture that is
held whole to the next: short sections repeat less, long ones hold less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from sdjax.config import VaeConfig
from sdjax.core.tree import Params
from sdjax.nn.layers import GroupNorm, Moments
from sdjax.nn.tiling.grid import Axis, Grid, Sums
from sdjax.nn.vae import Autoencoder, Layer, Posterior, decoder_layers, encoder_layers

# A part of a picture and moments of the first norms -> the layers' result, and what arrived at each norm.
Network = Callable[[jax.Array, Sequence[Moments]], tuple[jax.Array, list[jax.Array]]]

HALVES = {"encoder": encoder_layers, "decoder": decoder_layers}
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
        return sum(NORMS.get(kind, 0) for kind in self._kinds)

    def grid(self, x: jax.Array, tile: int) -> Grid:
        """How x `b h w c`, which goes in, is cut into tiles of at most `tile` pixels at the finer end."""
        finer = 2 if "up" in self._kinds or "down" in self._kinds else 1
        margin = -(-sum(REACH.get(kind, 1) for kind in self._kinds) // finer)
        before = 2 if "down" in self._kinds else 1
        rows, columns = (Axis.cut(size // before, max(1, tile // finer), margin) for size in x.shape[1:3])
        return Grid(rows, columns)

    def blank(self, x: jax.Array, like: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Room for the result, `b h' w' width`, filled with a number of `like`.

        Room filled with a constant would be there from the program's beginning on.
        """
        up, down = (2 if kind in self._kinds else 1 for kind in ("up", "down"))
        shape = (x.shape[0], *(up * size // down for size in x.shape[1:3]), self.layers[-1].width)
        return jnp.broadcast_to(like.ravel()[0].astype(dtype), shape)

    @property
    def _kinds(self) -> list[str]:
        return [layer.kind for layer in self.layers]


def decode(
    config: VaeConfig, dtype: DTypeLike, params: Params, latents: jax.Array, limits: Limits = Limits()
) -> jax.Array:
    """`Autoencoder.decode`: latents `b h w c` (unscaled) -> pixels `b H W 3`, float32, not clipped."""
    model = Autoencoder(config, dtype)
    x = model.apply({"params": params}, latents, method="entry")
    return _run(model, "decoder", params, x, limits).astype(jnp.float32)


def encode(
    config: VaeConfig, dtype: DTypeLike, params: Params, pixels: jax.Array, limits: Limits = Limits()
) -> Posterior:
    """`Autoencoder.encode`: pixels `b H W 3` in [-1, 1] -> Posterior `b h w c`.

    Raises ValueError where H or W is no multiple of what the autoencoder shrinks by.
    """
    if any(size % config.factor for size in pixels.shape[1:3]):
        raise ValueError(f"pixels: height and width must be multiples of {config.factor}, not {pixels.shape[1:3]}")
    model = Autoencoder(config, dtype)
    return model.apply({"params": params}, _run(model, "encoder", params, pixels, limits), method="posterior")


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


def _run(model: Autoencoder, half: str, params: Params, x: jax.Array, limits: Limits) -> jax.Array:
    """All layers of one half of the model."""
    groups, layers = model.config.norm_num_groups, HALVES[half](model.config)
    for section in sections(layers, (x.shape[1], x.shape[2], x.shape[3]), limits):
        network = partial(_through, model, half, section.layers, params)
        x = _by_tiles(section, network, x, groups, model.dtype, limits.tile) if section.tiled else network(x, ())[0]
    return x


def _through(
    model: Autoencoder, half: str, layers: tuple[Layer, ...], params: Params, x: jax.Array, known: Sequence[Moments]
) -> tuple[jax.Array, list[jax.Array]]:
    """Some layers of one half as a `Network`.

    What is computed after the first norm that is not known means nothing, and XLA leaves it out.
    """
    arrived: list[jax.Array] = []

    def step_in(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, GroupNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        arrived.append(args[0])
        return call(args[0], known[len(arrived) - 1] if len(arrived) <= len(known) else None)

    with nn.intercept_methods(step_in):
        # Of the whole model and not of `Layers` alone: its parameters then have their whole paths in messages.
        y = model.apply({"params": params}, x, method=lambda whole, x: getattr(whole, half)(x, layers))
    return y, arrived


def _by_tiles(section: Section, network: Network, x: jax.Array, groups: int, dtype: DTypeLike, tile: int) -> jax.Array:
    """`b h w c -> b h' w' width`: measures norm after norm, then writes the result."""
    grid = section.grid(x, tile)
    known: list[Moments] = []
    for _ in range(section.norms):
        known.append(_measured(grid, network, x, tuple(known), groups))

    def write(out: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        return grid.written(out, network(grid.window(x, place), known)[0], place), None

    blank = section.blank(x, known[-1][0] if known else x, dtype)
    return lax.scan(write, blank, grid.places())[0]


def _measured(grid: Grid, network: Network, x: jax.Array, known: Sequence[Moments], groups: int) -> Moments:
    """The moments of the first norm of which they are not known."""

    def add(sums: Sums, place: jax.Array) -> tuple[Sums, None]:
        arrived = network(grid.window(x, place), known)[1][len(known)]
        return grid.added(sums, arrived, place), None

    zero, nothing = jnp.zeros((), jnp.float32), jnp.zeros((x.shape[0], groups), jnp.float32)
    (count, mean, squares), _ = lax.scan(add, (zero, nothing, nothing), grid.places())
    return mean, squares / count
