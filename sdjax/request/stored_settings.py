"""Settings that a file holds: the way back from a picture to `generate`'s arguments.

Whatever is read from a file is checked here: which arguments of `generate` it names, of which type, and how large, as
`arguments` declares them. Every number is in its range before anything is made of it, for a stranger's text may ask
for more memory or time than there is; and nothing names a file to open. Of what was given as a picture, a mask or
noise a file can only say that there was one.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.metadata.picture import find_settings
from sdjax.request.arguments.arguments import DECLARED
from sdjax.request.arguments.topic import GIVEN, NONE, Declaration

PIXELS = (-1_000_000, 1_000_000)  # of SDXL's sizes and crops
OPTION = (-1e9, 1e9)  # of a number among a sampler's options
MOST_OPTIONS, MOST_ENTRIES = 100, 1001  # of a sampler's options, and of a list among them: the levels of 1000 steps


def read_settings(source: str | os.PathLike[str] | Image.Image) -> dict[str, Any]:
    """The arguments that make a picture again: `sd.generate(**read_settings("x.png"))`.

    From our own text where there is one: what is missing there is left to `generate`'s default; what this
    version does not know is an error, since the picture would come out another. Else from what another program wrote:
    `foreign` and `infotext` say which, and where its words differ. Fields we have no word for are left out; where they
    change the picture one warning names them. A sampler or schedule of A1111's text that we do not know keeps its name
    for `generate` to judge. The model is not among the settings: load it first. Starting noise that was given
    (`latents`) is in no picture, and neither are a picture or a mask: a file says that there was one, never where.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no picture, holds no settings, or holds broken ones; or numbers beyond those of `check`.
    """
    found = find_settings(source)
    try:
        settings = check(found.settings)
    except ValueError as error:
        raise ValueError(f"{found.where}: {found.place}{error}") from None
    if found.notes:
        notice(f"{found.where}: settings of {found.program}: {'; '.join(found.notes)}")
    return settings


def check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are. Raises ValueError where one is unknown, of another type or out of range."""
    for name, value in settings.items():
        declared = DECLARED.get(name)
        if declared is None or not declared.types:
            raise ValueError(f"unknown setting {name[:40]!r}; was it made by a newer sdjax?")
        _check_one(name, value, declared)
    _check_options(settings.get("sampler_options") or {})
    return dict(settings)


def _check_one(name: str, value: Any, declared: Declaration) -> None:
    if type(value) not in declared.types or (isinstance(value, float) and not math.isfinite(value)):
        wanted = " or ".join("null" if kind is NONE else kind.__name__ for kind in declared.types)
        raise ValueError(f"{name} must be {wanted}, not {short(value)}")
    if declared.told == GIVEN and value != "given":
        raise ValueError(f'{name} can only be "given" in a picture\'s settings, not {short(value)}: pass your own')
    if declared.span is not None and value is not None:
        _check_range(name, value, declared.span)
    if declared.types == (list,):
        _check_pair(name, value)


def _check_range(name: str, value: float, span: tuple[float, float]) -> None:
    low, high = span
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:,g} to {_number(high)}, not {short(value)}")


def _check_pair(name: str, value: list[Any]) -> None:
    if len(value) != 2 or not all(type(one) in (int, float) for one in value):
        raise ValueError(f"{name} must be two numbers, not {short(value)}")
    for one in value:
        _check_range(name, one, PIXELS)


def _check_options(options: Mapping[str, Any]) -> None:
    """A sampler's options are numbers, strings and lists of them; "s_tmax" alone may be infinite."""
    if len(options) > MOST_OPTIONS:
        raise ValueError(f"sampler_options has {len(options)} entries; no sampler has over {MOST_OPTIONS}")
    for name, value in options.items():
        listed = value if isinstance(value, list) else [value]
        if len(listed) > MOST_ENTRIES:
            raise ValueError(
                f"sampler_options: {name[:40]!r} has {len(listed):,} entries, and the most is {MOST_ENTRIES:,}"
            )
        if not all(isinstance(one, str | int | float | None) for one in listed):
            raise ValueError(f"sampler_options: {name[:40]!r} must be a number, a string or a list of them")
        numbers = [one for one in listed if isinstance(one, int | float) and not (name == "s_tmax" and one == math.inf)]
        for one in numbers:
            _check_range(f"sampler_options: {name[:40]!r}", one, OPTION)


def _number(value: float) -> str:
    return f"{value:,}" if value < 1e12 else f"{value:.4g}"
