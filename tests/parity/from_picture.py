"""Runs from a picture by each side: a pipeline of diffusers and `generate`, from the same checkpoint and torch seeds.

Each picture has a generator of its own there, as a list of seeds means here, so equal latents also say that all noise
is drawn in diffusers' order.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from PIL import Image

import sdjax
from tests.checkpoints import respecified
from tests.parity.families import FACTOR, channels_first, channels_last, opened, relative, run

TOLERANCE = 1e-5  # the issue asks for 1e-3
MOVES = 100 * TOLERANCE
PROMPTS, NEGATIVES = ["a red circle", "a blue square above a red ring"], ["a blue", "a red square"]
HEIGHT, WIDTH = 12 * FACTOR, 16 * FACTOR
SEEDS = (3, 4)
V = {"prediction_type": "v_prediction"}


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    """A random picture, smooth at a few pixels' scale."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = [picture(seed=seed) for seed in (1, 2)]
COMMON: dict[str, Any] = dict(prompt=PROMPTS, negative_prompt=NEGATIVES, image=PICTURES, guidance_scale=5.0, steps=10)


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask: white inside a box (left, top, right, bottom), black outside."""
    made = Image.new("L", (width, height))
    made.paste(255, box)
    return made


def generators() -> list[torch.Generator]:
    """One for each of SEEDS."""
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@functools.cache
def of_kind(kind: str, pipeline: type | None) -> diffusers.DiffusionPipeline:
    """The checkpoint in another of diffusers' pipelines, as image-to-image of a text-to-image model."""
    if pipeline is None:
        return opened(kind)[0]
    made = pipeline.from_pipe(opened(kind)[0])  # type: ignore[attr-defined]
    made.set_progress_bar_config(disable=True)
    return made


def theirs(kind: str, sampler: str, pipeline: type | None = None, **asked: Any) -> np.ndarray:
    """Latents `b h w c` of our arguments, as `families.run` takes them."""
    return channels_last(run(of_kind(kind, pipeline), sampler, generator=generators(), **COMMON | asked))


def ours(kind: str, sampler: str, changed: dict[str, Any] | None = None, **asked: Any) -> np.ndarray:
    """The same of `generate`. changed: values of the scheduler's config that are to be others."""
    sd: sdjax.StableDiffusion = opened(kind)[1]
    sd = respecified(sd, scheduler={**sd.scheduler, **changed}) if changed else sd
    given = dict(seed=list(SEEDS), noise_source="torch_cpu", decode=False, progress=False)
    return sd.generate(**COMMON | given | asked, sampler=sampler).latents


def check(
    kind: str, sampler: str, pipeline: type | None = None, tolerance: float = TOLERANCE, **asked: Any
) -> np.ndarray:
    """Both sides compared; the latents of diffusers."""
    want = theirs(kind, sampler, pipeline, **asked)
    away = relative(ours(kind, sampler, **asked), want)
    assert away <= tolerance, away
    return want


@contextlib.contextmanager
def drawn_as(noise: np.ndarray) -> Iterator[None]:
    """diffusers' pipelines draw this noise, `b h w c`, whatever their generators."""
    drawn = channels_first(noise)
    modules = [module for name, module in sys.modules.items() if name.startswith("diffusers.pipelines.stable_diff")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if "randn_tensor" in vars(module):
                stack.enter_context(mock.patch.object(module, "randn_tensor", lambda *_, **__: drawn))
        yield
