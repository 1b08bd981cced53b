"""Presets of adapters that make pictures in a few steps: the sampler that each was distilled for.

Such an adapter is an ordinary LoRA, worn or merged at scale 1. What it needs besides is its own sampler and little or
no guidance, and with any other its pictures are grey or torn:

    lcm        Luo et al. 2023, arXiv:2311.05556           sampler lcm, 2 to 8 steps, guidance 1 to 2
    tcd        Zheng et al. 2024, arXiv:2402.19159         sampler tcd, eta 0.3, 2 steps or more
    lightning  Lin et al. 2024, arXiv:2402.13929           euler on trailing timesteps; a LoRA for 2, 4 and 8 steps each
    hyper      Ren et al. 2024, arXiv:2404.13686           ddim on trailing timesteps; a LoRA for 2, 4 and 8 steps each

A preset stands for those arguments that the caller left out. The settings of a picture hold them and no preset.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdjax.core.errors import unknown
from sdjax.core.short import short
from sdjax.diffusion.a1111_comfy import PRESETS
from sdjax.request.arguments.arguments import DEFAULTS, Arguments
from sdjax.request.checks import spread

SPEED: Mapping[str, Mapping[str, Any]] = {
    "lcm": {"sampler": "lcm", "steps": 4, "guidance_scale": 1.0},
    "tcd": {"sampler": "tcd", "steps": 4, "eta": 0.3, "guidance_scale": 1.0},
    "lightning": {"sampler": "euler", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0},
    "hyper": {"sampler": "ddim", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0},
}
FIXED = ("sampler", "schedule")  # what such an adapter cannot do without


def resolved(given: Arguments, count: int) -> Arguments:
    """The arguments with what their presets stand for, for `count` pictures. Raises ValueError.

    That is an unknown preset, and one whose adapter needs another sampler or schedule than was asked for.
    """
    presets = spread(given.sampling.preset, count, "preset")
    for preset in presets:
        if preset is not None and preset not in [*PRESETS, *SPEED]:  # a list: it may be of any type
            raise ValueError(unknown(f"preset {short(preset)} is unknown", preset, [*PRESETS, *SPEED]))
    if not any(preset in SPEED for preset in presets):
        return given
    names = ("sampler", "schedule", "steps", "eta")
    own = {name: _one(_column(getattr(given.sampling, name), name, presets)) for name in names}
    scales = _column(given.guidance.guidance_scale, "guidance_scale", presets)
    # None is the model's own scale, for which a list has no word: where all are given or none, it stays one value.
    if any(scale is None for scale in scales) and not all(scale is None for scale in scales):
        raise ValueError("preset: give guidance_scale= for the pictures that have no preset for it")
    rest = [None if preset in SPEED else preset for preset in presets]
    sampling = replace(given.sampling, **own, preset=_one(rest))
    return replace(given, sampling=sampling, guidance=replace(given.guidance, guidance_scale=_one(scales)))


def _column(value: Any, name: str, presets: list[str | None]) -> list[Any]:
    """An argument of each picture: as its preset has it where it was left out. Raises ValueError."""
    column = spread(value, len(presets), name)
    return [_resolved(one, name, preset) for one, preset in zip(column, presets, strict=True)]


def _resolved(value: Any, name: str, preset: str | None) -> Any:
    recipe = SPEED.get(preset or "", {})
    if name not in recipe or value == recipe[name]:
        return value
    if value != DEFAULTS[name]:
        if name in FIXED:
            raise ValueError(
                f"preset {preset!r} is for adapters that were made for {name} {recipe[name]!r}: leave out {name}="
                f"{short(value)}, or the preset"
            )
        return value
    return recipe[name]


def _one(column: list[Any]) -> Any:
    """One value for all pictures where it is the same for all."""
    return column[0] if all(one == column[0] for one in column) else column
