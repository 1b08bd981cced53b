"""Tags: what AUTOMATIC1111's web UI reads in a prompt as a file to be worn, and takes out of the text.

    <lora:name>  <lora:name:0.8>  <lora:name:0.5:0.8>  <lora:name:te=0.5:unet=0.8:dyn=4>  <lyco:name>  <hypernet:name:1>

A tag is a word, a colon, and at least one letter up to the next ">". What is between is cut at its colons; a part with
one "=" is named, others count by their place:

    (1)   name : te : unet : dyn            te 1 where it is not given, unet = te, dyn None: all of the rank

A named number goes over one by its place. The extension LoRA Block Weight [2] adds `lbw=` (a list's name, or numbers
between commas, one for each block), `start=` and `stop=` (steps), and `step=a-b` for both. A hypernetwork's second part
is its strength, here `unet`. A1111 takes tags of any word out, also of those that it then knows nothing to do with.

Nothing here looks a name up, and a text without end takes time in proportion to its length.

[1] https://github.com/AUTOMATIC1111/stable-diffusion-webui modules/extra_networks.py, parse_prompt, and
    extensions-builtin/Lora/extra_networks_lora.py, activate
[2] https://github.com/hako-mikan/sd-webui-lora-block-weight scripts/lora_block_weight.py
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdjax.core.errors import shown

TAG = re.compile(r"<(\w+):([^>]+)>")
LORA, HYPERNET = ("lora", "lyco"), ("hypernet",)
RANDOM = "R, U and X stand for numbers that are drawn or come from a plot"


@dataclass(frozen=True)
class Tag:
    """One tag.

    Attributes:
      kind: its first word: "lora", "lyco", "hypernet", or any other. name: of the file.
      te, unet: strengths of what is done to the text encoders and to the U-Net. dyn: how many of the ranks count.
      lbw: the name of a list of blocks' weights, or the weights. start, stop: the steps in which it counts.
      unread: further parts of it that nobody knows.
    """

    kind: str
    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    lbw: str | tuple[float, ...] | None = None
    start: int | None = None
    stop: int | None = None
    unread: tuple[str, ...] = ()


def tags(text: str) -> tuple[str, list[Tag]]:
    """A text without its tags, and they, in their order.

    White space around a tag stays. Raises ValueError, with the tag, for one without a name or with a number that is
    none.
    """
    found: list[Tag] = []

    def taken(match: re.Match[str]) -> str:
        found.append(_tag(match[1], match[2].split(":"), shown(match[0], 120)))
        return ""

    end = text.rfind(">") + 1  # behind it nothing can close, and looking for it from every "<" would take n^2
    return TAG.sub(taken, text[:end]) + text[end:], found


def _tag(kind: str, items: Sequence[str], whole: str) -> Tag:
    named = {pair[0]: pair[1] for item in items if len(pair := item.split("=")) == 2}
    placed = [item for item in items if len(item.split("=")) != 2]
    if not placed or not placed[0].strip():
        raise ValueError(f"{whole} names no file; write <{kind}:name:0.8>")
    if kind in HYPERNET:  # whose parts have no names
        return Tag(kind, items[0], unet=_number(items[1], "its strength", whole) if len(items) > 1 else 1.0)
    if kind not in LORA:
        return Tag(kind, placed[0], unread=tuple(items[1:]))
    return _lora(kind, placed, named, whole)


def _lora(kind: str, placed: Sequence[str], named: Mapping[str, str], whole: str) -> Tag:
    """Equation 1."""

    def given(place: int, name: str) -> str | None:
        return named.get(name, placed[place] if len(placed) > place else None)

    te, unet, dyn = (given(place, name) for place, name in enumerate(("te", "unet", "dyn"), start=1))
    strength = 1.0 if te is None else _number(te, "te", whole)
    start, stop = _steps(named, whole)
    known = ("te", "unet", "dyn", "lbw", "start", "stop", "step")
    return Tag(
        kind,
        placed[0],
        strength,
        strength if unet is None else _number(unet, "unet", whole),
        None if dyn is None else _count(dyn, "dyn", whole, 1),
        None if "lbw" not in named else _blocks(named["lbw"], whole),
        start,
        stop,
        (*placed[4:], *(f"{name}={value}" for name, value in named.items() if name not in known)),
    )


def _steps(named: Mapping[str, str], whole: str) -> tuple[int | None, int | None]:
    first, last = (named.get(name) for name in ("start", "stop"))
    if "step" in named:
        first, dash, last = named["step"].partition("-")
        if not dash:
            raise ValueError(f"{whole}: step must be two numbers, as step=5-20, not {named['step'][:20]!r}")
    start, stop = (
        None if one is None else _count(one, name, whole, 0) for name, one in (("start", first), ("stop", last))
    )
    if start is not None and stop is not None and stop < start:
        raise ValueError(f"{whole}: it stops at step {stop} and starts at {start}")
    return start, stop


def _blocks(value: str, whole: str) -> str | tuple[float, ...]:
    """A list by name, or its numbers."""
    if "," not in value:
        if not value.strip():
            raise ValueError(f"{whole}: lbw is empty: give a list's name, or numbers between commas")
        return value.strip()
    return tuple(_number(one, "lbw", whole) for one in value.split(","))


def _number(value: str, what: str, whole: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        drawn = f" ({RANDOM})" if value.strip() in ("R", "U", "X") else ""
        raise ValueError(f"{whole}: {what} must be a number, not {shown(repr(value), 40)}{drawn}")
    return found


def _count(value: str, what: str, whole: str, least: int) -> int:
    digits = value.strip()
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 6 or int(digits) < least:
        raise ValueError(f"{whole}: {what} must be a whole number from {least} on, not {shown(repr(value), 40)}")
    return int(digits)
