"""The steps of a run as one labelled strip, and as an animation.

A step becomes a column: above what the network saw, x_t, and below what it took that for, the jump to clean latents
(see `steps`). The animation shows the jumps one after the other.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdjax.core import short
from sdjax.core.files import write
from sdjax.images.pixels import to_uint8
from sdjax.images.sheet import sheet
from sdjax.sampling.preview import Decode
from sdjax.sampling.trace import Step

NARROWEST = 128  # pixels: a picture smaller than this is enlarged, so that its caption fits
HOLD = 1.5  # seconds for which an animation rests on its last frame
FORMATS = {".webp": "WEBP", ".gif": "GIF"}
LIMITS = {".webp": 16383, ".gif": 65535}  # pixels of a side


@dataclass(frozen=True, eq=False)
class Frame:
    """One step as b pictures, uint8 `b H W 3`: what the network saw, and the jump from there."""

    step: Step
    noisy: np.ndarray
    jump: np.ndarray

    __repr__ = short.fields


def develop(steps: Sequence[Step], decode: Decode) -> tuple[Frame, ...]:
    """Decodes the steps, each once, for a strip and an animation of any of their pictures.

    decode: `sd.decode`, or the cheap `sd.viewer.linear`: latents `b h w c` -> `b H W 3`, uint8 or floats in
    [-1, 1]. Raises ValueError where there is no step.
    """
    if not steps:
        raise ValueError("there are no steps to show: give generate show_steps=True, a number of steps, or a list")
    return tuple(Frame(step, _pixels(decode(step.latents)), _pixels(decode(step.denoised))) for step in steps)


def strip(frames: Sequence[Frame], chosen: int | None = None, width: int = NARROWEST) -> Image.Image:
    """The labelled strip: a column for each frame, two rows for each picture, or for the `chosen` one alone.

    width: of each picture, in pixels.
    """
    pictures, captions = [], []
    for i in _chosen(frames, chosen):
        pictures += [_resized(frame.noisy[i], width) for frame in frames]
        captions += [_caption(frame.step) for frame in frames]
        pictures += [_resized(frame.jump[i], width) for frame in frames]
        captions += [f"jump from step {frame.step.number}" for frame in frames]
    return sheet(pictures, captions, len(frames))


def animation(
    frames: Sequence[Frame], path: str | os.PathLike[str], seconds: float = 4.0, chosen: int | None = None
) -> Path:
    """Writes the jumps one after the other as an animated WebP or GIF, which the path's ending says.

    seconds: how long all of it lasts; the last frame is held for HOLD more. Of all pictures side by side, or of the
    `chosen` one alone. Nothing is written before all of it is there. Raises ValueError for another ending, times that
    are none and pictures too wide; OSError where it cannot be written.
    """
    path = Path(path)
    ending = check_ending(path)
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a number above 0, not {seconds}")
    shown = [_moment(frame, _chosen(frames, chosen)) for frame in frames]
    if max(shown[0].size) > LIMITS[ending]:
        raise ValueError(f"a {ending} holds {LIMITS[ending]} pixels a side and {shown[0].width} are needed: chosen=0")
    each = 1000 * seconds / len(shown)
    durations = [max(20, round(each))] * (len(shown) - 1) + [round(each + 1000 * HOLD)]
    encoded = io.BytesIO()
    options: dict[str, Any] = {"quality": 90} if ending == ".webp" else {}
    shown[0].save(
        encoded, FORMATS[ending], save_all=True, append_images=shown[1:], duration=durations, loop=0, **options
    )
    return write(encoded.getbuffer(), path)


def check_ending(path: str | os.PathLike[str]) -> str:
    """The ending of an animation's name, in small letters. Raises ValueError."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{path}: an animation is a .webp or a .gif; name it {Path(path).stem}.webp")
    return ending


def _moment(frame: Frame, chosen: Sequence[int]) -> Image.Image:
    """A frame of the animation."""
    shown = [_resized(frame.jump[i], max(NARROWEST, frame.jump.shape[2])) for i in chosen]
    return sheet(shown, [_caption(frame.step)] + [""] * (len(shown) - 1), len(shown))


def _caption(step: Step) -> str:
    return f"step {step.number}, t {step.timestep:.4g}\nsigma {step.sigma:.3g}"


def _chosen(frames: Sequence[Frame], chosen: int | None) -> Sequence[int]:
    count = len(frames[0].jump)
    if chosen is None:
        return range(count)
    if not 0 <= chosen < count:
        raise ValueError(f"chosen must be a picture's number, 0 to {count - 1}, not {chosen}")
    return (chosen,)


def _resized(pixels: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(pixels)
    size = (width, max(1, round(width * image.height / image.width)))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _pixels(decoded: Any) -> np.ndarray:
    decoded = np.asarray(decoded)
    return decoded if decoded.dtype == np.uint8 else to_uint8(decoded)
