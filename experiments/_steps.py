"""A run as the command line shows it: its steps in a strip and an animation; a Ctrl-C that keeps what is done."""

import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion
    from sdjax.sampling.preview import Preview
    from sdjax.sampling.trace import Step

NOTE = b"stopping after this step, which may take a moment; Ctrl-C again stops at once\n"


def define_flags() -> None:
    """The flags that this module reads."""
    flags.DEFINE_string(
        "show_steps",
        "none",
        "Steps to show beside each picture, as 00000_steps.png and .webp: all, so many, or a list from 0, as 0,5,10.",
    )
    flags.DEFINE_enum("preview_decoder", "vae", ["vae", "linear"], "What shows them: the VAE, or a map that is cheap.")


def asked(text: str) -> bool | int | list[int] | None:
    """--show_steps as `generate` takes it. Raises ValueError."""
    if text in ("none", "all"):
        return text == "all" or None
    parts = text.removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--show_steps={text}: write none, all, a number of steps, or a list of them, as 0,5,10")
    numbers = [int(part) for part in parts]
    return numbers if "," in text else numbers[0]


def write(sd: "StableDiffusion", decoder: str, steps: Sequence["Step"], paths: Sequence[Path]) -> list[Path]:
    """Writes the strip and the animation of each picture beside it; nothing where there are no steps.

    decoder: "vae" or "linear".
    """
    from sdjax.core import files
    from sdjax.sampling import strip

    if not steps:
        return []
    frames, written = strip.develop(steps, sd.decode if decoder == "vae" else sd.viewer.linear), []
    for i, path in enumerate(paths):
        encoded = io.BytesIO()
        strip.strip(frames, chosen=i).save(encoded, "PNG", optimize=True)
        written.append(files.write(encoded.getbuffer(), path.with_name(f"{path.stem}_steps.png")))
        written.append(strip.animation(frames, path.with_name(f"{path.stem}_steps.webp"), chosen=i))
    return written


class Interrupt:
    """Within it, a first Ctrl-C asks the run to stop after a step, and a second one stops everything at once."""

    asked = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)
        os.write(2, NOTE)  # and not print, which may itself be what was interrupted

    def go_on(self, preview: "Preview") -> bool:
        """The callback for `generate`."""
        return not self.asked
