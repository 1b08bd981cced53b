"""Every Gaussian number that pictures take, by what it is for.

A picture's key gives each use a number of its own, so that no two are alike: what the run starts from, the draws of the
VAE's posterior for the picture and for the masked picture, the noise on an upscaler's small picture, the sampler's own.
Where a seed means torch's numbers, they are drawn in the order in which diffusers' pipelines ask for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import torch_noise
from sdjax.core import short
from sdjax.request.request import Request
from sdjax.runtime import programs

# Beyond the numbers of all stages of a run and of a key's own halves, which fold_in would give again.
USES = {"start": None, "encoding": 2**31, "masked": 2**31 + 1, "low_res": 2**31 + 2}
Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Draws:
    """The noise of b pictures, unit Gaussian.

    Attributes:
      by_use: [b, h, w, c] for each use that the pictures have. sampler: [draws, b, h, w, c] in the order of the plan's
        draws; None where they come from the pictures' keys.
    """

    by_use: dict[str, Any]
    sampler: np.ndarray | None = None

    __repr__ = short.fields

    def __getitem__(self, use: str) -> jax.Array:
        return jnp.asarray(self.by_use[use])


def make(asked: Request, shape: Shape, run: Callable[..., Any]) -> Draws:
    """All that the request needs. shape: (h, w, c) of the latents. run: `Executor.run` of what draws.

    Raises ValueError for an order torch has not.
    """
    shapes = {use: shape for use in asked.inputs.uses}
    if "low_res" in shapes:
        shapes["low_res"] = (*shape[:2], 3)
    if asked.noise_source == "jax":
        keys = asked.keys(stage=0)
        return Draws({use: run(programs.noise, own, USES[use], keys) for use, own in shapes.items()})
    before = asked.drawn or (0,) * len(asked.seeds)
    pictures = [
        _of_torch(asked.noise_source, seed, number, shapes, drawn + asked.plan.draws)
        for seed, number, drawn in zip(asked.seeds, asked.numbers, before, strict=True)
    ]
    by_use = {use: np.stack([own[0][use] for own in pictures]) for use in shapes}
    return Draws(by_use, np.stack([own[1][drawn:] for own, drawn in zip(pictures, before, strict=True)], 1))


def _of_torch(
    source: str, seed: int, number: int, shapes: dict[str, Shape], draws: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One picture's noise by use, and its sampler's draws [draws, h, w, c]."""
    uses, shape = list(shapes), shapes["start"]
    if set(shapes.values()) == {shape}:
        first, rest = torch_noise.picture_noise(source, seed, number, shape, len(uses) - 1 + draws)
        stream: Sequence[np.ndarray] = [first, *rest]
        return dict(zip(uses, stream, strict=False)), np.array(stream[len(uses) :]).reshape(draws, *shape)
    if number:
        raise ValueError(
            f"noise_source {source!r}: an upscaler's noise depends on the whole batch in torch; give a seed per picture"
        )
    generator = torch_noise.generator(source, seed)
    drawn = [_channels_last(generator, own) for own in [*shapes.values(), *[shape] * draws]]
    return dict(zip(uses, drawn, strict=False)), np.array(drawn[len(uses) :]).reshape(draws, *shape)


def _channels_last(generator: Any, shape: Shape) -> np.ndarray:
    h, w, c = shape
    return np.moveaxis(generator.randn((c, h, w)), 0, -1)
