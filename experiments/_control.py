"""Flags of the command line that say what steers the pictures: a net and its map, an adapter and its picture.

    --control=canny.safetensors=edges.png,scale=0.8,end=0.5        what follows is sdjax.Control's, by name
    --image_prompt=ip-adapter.safetensors=photo.png,scale=0.6      and here sdjax.ImagePrompt's

Each may be given several times.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from absl import flags

NUMBERS = ("scale", "start", "end")
HELP = "net=map, as canny.safetensors=edges.png,scale=0.8,end=0.5 (docs/control.md); several times for several."
SHOWN = "adapter=picture, as ip-adapter.safetensors=photo.png,scale=0.6; several times for several."


def define_flags() -> None:
    """Of the program that asks for them."""
    flags.DEFINE_multi_string("control", [], HELP)
    flags.DEFINE_multi_string("image_prompt", [], SHOWN)


def arguments(values: Any) -> dict[str, Any]:
    """What the flags say, as `generate` takes it. Raises ValueError."""
    import sdjax

    return {
        "control": _each(values.control, "control", sdjax.Control),
        "image_prompt": _each(values.image_prompt, "image_prompt", sdjax.ImagePrompt),
    }


def _each(given: Sequence[str], name: str, kind: Any) -> list[Any] | None:
    known = [one.name for one in fields(kind)][2:]
    return [kind(*_paths(one, name), **_told(one, name, known)) for one in given] or None


def _paths(one: str, name: str) -> tuple[str, str]:
    net, sign, image = one.partition(",")[0].partition("=")
    if not sign or not net or not image:
        raise ValueError(f"--{name}={one}: write two paths, as --{name}=net.safetensors=picture.png,scale=0.8")
    return net, image


def _told(one: str, name: str, known: Sequence[str]) -> dict[str, Any]:
    """What is said behind the paths, by name."""
    from sdjax.core.errors import unknown

    made: dict[str, Any] = {}
    for part in one.split(",")[1:]:
        key, sign, value = part.partition("=")
        if not sign or key not in known:
            raise ValueError(unknown(f"--{name}={one}: {part!r} is none of its numbers and names", key, known))
        try:
            made[key] = float(value) if key in NUMBERS else value
        except ValueError:
            if key != "scale" or name == "control":  # an image prompt's may be a word
                raise ValueError(f"--{name}={one}: {key} must be a number, not {value!r}") from None
            made[key] = value
    return made
