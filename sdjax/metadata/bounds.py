"""What a picture's settings may hold: which arguments of `generate`, of which type, and how large.

Whoever reads settings from a file ends with `check`: every number is in its range before anything is made of it, for a
stranger's text may ask for more memory or time than there is; and nothing names a file to open. Of what was given as a
picture, a mask or noise a file can only say that there was one.
"""

import math
from collections.abc import Mapping
from typing import Any

from sdjax.core.limits import MOST_BLUR, MOST_COUNT, MOST_PICTURES, MOST_SIDE
from sdjax.core.short import short

# Least and most of each number, both allowed: what `generate` allows at most, and less where that knows no end.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10_000),
    "seed": (0, 2**64 - 1),
    "num_images": (1, MOST_PICTURES),
    "first_image": (0, MOST_COUNT),
    "height": (1, MOST_SIDE),
    "width": (1, MOST_SIDE),
    "guidance_scale": (0, 10_000),
    "image_guidance_scale": (0, 10_000),
    "guidance_rescale": (0, 1),
    "strength": (0, 1),
    "eta": (-100, 100),
    "refiner_start": (0, 1),
    "denoising_start": (0, 1),
    "denoising_end": (0, 1),
    "aesthetic_score": (-1000, 1000),
    "negative_aesthetic_score": (-1000, 1000),
    "mask_blur": (0, MOST_BLUR),
    "mask_crop": (0, MOST_SIDE),
    "noise_level": (0, 10_000),
    "stop_after": (1, MOST_COUNT),
}
PIXELS = (-1_000_000, 1_000_000)  # of SDXL's sizes and crops
OPTION = (-1e9, 1e9)  # of a number among a sampler's options
MOST_OPTIONS, MOST_ENTRIES = 100, 1001  # of a sampler's options, and of a list among them: the levels of 1000 steps

# Arguments that are no text or number: the settings say that there was one, and `generate` asks for it again.
GIVEN = ("latents", "image", "mask", "depth", "regions")
_SIZES = ("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size")
# A whole number will do for a float.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("prompt", "sampler", "prompt_2", "negative_prompt_2"), (str,)),
    **dict.fromkeys(("noise_source", "prompt_style", "clip_skip"), (str,)),
    "negative_prompt": (str, type(None)),
    **dict.fromkeys(("steps", "seed", "num_images", "first_image", "height", "width"), (int,)),
    **dict.fromkeys(("guidance_scale", "guidance_rescale"), (float, int)),
    "eta": (float, int, type(None)),
    **dict.fromkeys(("refiner_start", "denoising_start", "denoising_end"), (float, int)),
    **dict.fromkeys(("aesthetic_score", "negative_aesthetic_score"), (float, int)),
    **dict.fromkeys(_SIZES, (list,)),
    **dict.fromkeys(("schedule", "preset", "guidance_schedule"), (str, type(None))),
    "sampler_options": (dict, type(None)),
    **dict.fromkeys(("strength", "image_guidance_scale", "mask_blur"), (float, int)),
    **dict.fromkeys(("noise_level", "mask_crop", "stop_after"), (int,)),
    **dict.fromkeys(GIVEN, (str,)),
    "refiner": (str,),  # its name, which `generate` refuses with the remedy
}


def check(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are. Raises ValueError where one is unknown, of another type or out of range."""
    for name, value in settings.items():
        if name not in _TYPES:
            raise ValueError(f"unknown setting {name[:40]!r}; was it made by a newer sdjax?")
        kinds = _TYPES[name]
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{name} must be {wanted}, not {short(value)}")
        if name in GIVEN and value != "given":
            raise ValueError(f'{name} can only be "given" in a picture\'s settings, not {short(value)}: pass your own')
        if name in RANGES and value is not None:
            _check_range(name, value, RANGES[name])
        if name in _SIZES:
            _check_pair(name, value)
    _check_options(settings.get("sampler_options") or {})
    return dict(settings)


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
