"""Inception-v3 as the Frechet inception distance has it: a picture -> 2,048 numbers.

Szegedy et al. 2016 (arXiv:1512.00567, section 6), in the form of TensorFlow's frozen graph of 2015-12-05, from which
Heusel et al. 2017 (arXiv:1706.08500) took the features. It differs from torchvision's network: an average at a border
counts the pixels that there are, not the zeros around them, and the last block takes a maximum where the paper takes an
average. Its weights came to torch by pytorch-fid (`pt_inception-2015-12-05`), and with them the names used here.

A block's branches are laid side by side, in the order in which they are listed. Every layer is a convolution, a norm by
the statistics that training has left, and max(0, .).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sdjax.nn.convolution import Padding, convolve
from sdjax.nn.parameter import own_parameters

SIDE, WIDTH = 299, 2048
EPS = 1e-3
NONE: Padding = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Layer:
    """A convolution of `size` (height, width), zeros around so that the size stays, or none where it halves it."""

    name: str
    width: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


def row(name: str, *layers: tuple[int, tuple[int, int]], halves: bool = False) -> tuple[Layer, ...]:
    """Layers one after the other, `name`_1, `name`_2 .. or `name` alone; halves: the last one halves the picture."""
    names = [f"{name}_{i + 1}" for i in range(len(layers))] if len(layers) > 1 else [name]
    made = [Layer(one, width, size) for one, (width, size) in zip(names, layers, strict=True)]
    if halves:
        made[-1] = Layer(made[-1].name, made[-1].width, made[-1].size, 2, False)
    return tuple(made)


ONE, THREE, FIVE, ACROSS, DOWN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
STEM = (
    Layer("Conv2d_1a_3x3", 32, THREE, 2, False), Layer("Conv2d_2a_3x3", 32, THREE, 1, False),
    Layer("Conv2d_2b_3x3", 64, THREE),
    Layer("Conv2d_3b_1x1", 80, ONE, 1, False), Layer("Conv2d_4a_3x3", 192, THREE, 1, False),
)  # fmt: skip


class FidInception(nn.Module):
    """Pixels `b 299 299 3`, (u - 128) / 128 or u / 127.5 - 1 of 8-bit values u -> the pooled features `b 2048`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = _halved(_run(STEM[:3], x))
        x = _halved(_run(STEM[3:], x))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = Mixed(_fives(), Layer("branch_pool", pooled), name=name)(x)
        x = Mixed(_halving_first(), None, name="Mixed_6a")(x)
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = Mixed(_sevens(width), Layer("branch_pool", 192), name=name)(x)
        x = Mixed(_halving_last(), None, name="Mixed_7a")(x)
        x = Widest("average", name="Mixed_7b")(x)
        x = Widest("max", name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


def _fives() -> tuple[tuple[Layer, ...], ...]:
    return (
        row("branch1x1", (64, ONE)),
        row("branch5x5", (48, ONE), (64, FIVE)),
        row("branch3x3dbl", (64, ONE), (96, THREE), (96, THREE)),
    )


def _halving_first() -> tuple[tuple[Layer, ...], ...]:
    return (
        row("branch3x3", (384, THREE), halves=True),
        row("branch3x3dbl", (64, ONE), (96, THREE), (96, THREE), halves=True),
    )


def _sevens(width: int) -> tuple[tuple[Layer, ...], ...]:
    return (
        row("branch1x1", (192, ONE)),
        row("branch7x7", (width, ONE), (width, ACROSS), (192, DOWN)),
        row("branch7x7dbl", (width, ONE), (width, DOWN), (width, ACROSS), (width, DOWN), (192, ACROSS)),
    )


def _halving_last() -> tuple[tuple[Layer, ...], ...]:
    return (
        row("branch3x3", (192, ONE), (320, THREE), halves=True),
        row("branch7x7x3", (192, ONE), (192, ACROSS), (192, DOWN), (192, THREE), halves=True),
    )


class Mixed(nn.Module):
    """Branches side by side, and the pool beside them: one layer on the average, or the halved picture itself."""

    branches: tuple[tuple[Layer, ...], ...]
    pool: Layer | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = _halved(x) if self.pool is None else _run((self.pool,), _average(x))
        return jnp.concatenate([*(_run(one, x) for one in self.branches), pooled], axis=-1)


class Widest(nn.Module):
    """The last two blocks, whose branches end in two, across and down. pool: "average" or "max"."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _run((Layer("branch3x3_1", 384),), x)
        double = _run((Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, THREE)), x)
        pooled = _average(x) if self.pool == "average" else nn.max_pool(x, THREE, (1, 1), ((1, 1), (1, 1)))
        ends = [("branch3x3_2", single), ("branch3x3dbl_3", double)]
        parts = [_run((Layer("branch1x1", 320),), x)]
        for name, inner in ends:
            parts += [_run((Layer(f"{name}{end}", 384, size),), inner) for end, size in (("a", (1, 3)), ("b", (3, 1)))]
        return jnp.concatenate([*parts, _run((Layer("branch_pool", 192),), pooled)], axis=-1)


class Unit(nn.Module):
    """Convolution, norm, max(0, .): `b h w c -> b h' w' width`."""

    layer: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = self.layer
        kernel = Kernel((*layer.size, x.shape[-1], layer.width), name="conv")()
        padding = tuple((side // 2, side // 2) for side in layer.size) if layer.padded else NONE
        return jax.nn.relu(Norm(name="bn")(convolve(x, kernel, layer.stride, padding)))  # type: ignore[arg-type]


class Kernel(nn.Module):
    """A kernel HWIO without a bias."""

    shape: Sequence[int]

    @nn.compact
    def __call__(self) -> jax.Array:
        return own_parameters(self, kernel=(nn.initializers.lecun_normal(), self.shape))["kernel"].astype(jnp.float32)


class Norm(nn.Module):
    """Batch normalisation by fixed statistics (Ioffe & Szegedy 2015), over the last axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        params = own_parameters(
            self, scale=(ones, shape), bias=(zeros, shape), running_mean=(zeros, shape), running_var=(ones, shape)
        )
        multiplier = params["scale"] * lax.rsqrt(params["running_var"] + EPS)
        return x * multiplier + (params["bias"] - params["running_mean"] * multiplier)


def _run(layers: Sequence[Layer], x: jax.Array) -> jax.Array:
    """Layers one after the other, in the module that calls."""
    for layer in layers:
        x = Unit(layer, name=layer.name)(x)
    return x


def _halved(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, THREE, (2, 2))


def _average(x: jax.Array) -> jax.Array:
    """The mean of the 3 x 3 pixels around each, of as many as there are."""
    return nn.avg_pool(x, THREE, (1, 1), ((1, 1), (1, 1)), count_include_pad=False)
