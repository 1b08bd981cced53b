"""How strongly an image prompt counts in each cross-attention of a U-Net.

What is given is

    0.6                                                         everywhere
    {"down": {"block_2": [0, 1]}, "mid": 0.5, "up": 0.3}        by block, and in it by transformer; not named: 0
    "style", "layout", "style+layout"                           in the blocks that tell mostly of these

Blocks are counted as diffusers counts them, `down_blocks.2` being "block_2"; a number stands for all of a block, or of
a way, and so does a list of one. What a picture tells apart was found by trial: of SDXL by InstantStyle (Wang et al.
2024, arXiv:2404.02733), of SD 1.5 by cubiq/ComfyUI_IPAdapter_plus (IPAdapterPlus.py, its weight types "style transfer"
and "composition").

Source: diffusers' loaders/unet_loader_utils.py, with 0 in place of 1 for what is not named.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.core.errors import unknown
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.nn.image_prompt import attention_paths

WAYS = ("down", "mid", "up")
LARGEST = float(np.finfo(np.float32).max)
Place = tuple[str, int, int]  # a transformer: its way, its block there and its number in it
Blocks = Mapping[tuple[str, int], int]  # how many transformers each block has

_PATH = re.compile(r"(down|up|mid)_block(?:s\.(\d+))?\.attentions\.(\d+)\..*")
_BLOCK = re.compile(r"block_(\d{1,9})", re.ASCII)
_SDXL = {("down", 1): 2, ("down", 2): 2, ("up", 0): 3, ("up", 1): 3}
_SD = {("down", 0): 2, ("down", 1): 2, ("down", 2): 2, ("up", 1): 3, ("up", 2): 3, ("up", 3): 3}


def _whole(*blocks: tuple[str, int]) -> dict[Place, float]:
    """1 in all transformers of some of SD's blocks."""
    return {(*block, number): 1.0 for block in blocks for number in range(_SD[block])}


PRESETS: Mapping[str, tuple[Mapping[Place, float], Mapping[Place, float]]] = {  # of SD 1.x and 2.x, of SDXL
    "style": (
        {**_whole(("down", 0), ("down", 1), ("up", 2), ("up", 3)), ("up", 1, 2): 1.0},
        {("up", 0, 1): 1.0},
    ),
    "layout": ({("down", 2, 0): 0.25, ("down", 2, 1): 1.0}, {("down", 2, 1): 1.0}),
}
JOINED = "style+layout"
NAMES = (*PRESETS, JOINED)
USAGE = f'a number, a mapping as {{"up": {{"block_0": [0, 1, 0]}}}}, or one of {", ".join(map(repr, NAMES))}'


def layer_scales(value: Any, unet: Mapping[str, Any], name: str) -> np.ndarray:
    """The scale of each cross-attention of a U-Net, float32 `l`, in the order of `attention_paths`.

    value: as the top of this file has it. unet: its parameters, or shapes. name: of the adapter, for messages.

    Raises ValueError for anything else: numbers that are not finite, blocks that this U-Net does not have, lists of
    another length, a preset for a U-Net that is neither SD nor SDXL.
    """
    paths = attention_paths(unet)
    if isinstance(value, str | Mapping):
        places = [_place(path) for path in paths]
        blocks = _blocks(places)
        scales = _preset(value, blocks, name) if isinstance(value, str) else _mapping(value, blocks, name)
        return np.array([scales.get(place, 0.0) for place in places], np.float32)
    return np.full(len(paths), _number(value, f"{name}: the scale", USAGE), np.float32)


def _place(path: str) -> Place:
    match = _PATH.fullmatch(path)
    assert match is not None, path
    return match[1], int(match[2] or 0), int(match[3])


def _blocks(places: Sequence[Place]) -> dict[tuple[str, int], int]:
    counts: dict[tuple[str, int], int] = {}
    for way, block, number in places:
        counts[way, block] = max(counts.get((way, block), 0), number + 1)
    return counts


def _preset(value: str, blocks: Blocks, name: str) -> dict[Place, float]:
    """The scales of one of NAMES for a U-Net of such blocks."""
    if value not in NAMES:
        raise ValueError(unknown(f"{name}: scale {short(value)} is unknown", value, NAMES))
    outer = {block: count for block, count in blocks.items() if block[0] != "mid"}
    if outer not in (_SD, _SDXL):
        raise ValueError(
            f"{name}: {value!r} is known of SD 1.x, 2.x and XL alone, whose blocks this U-Net does not "
            'have; say by a mapping where it is to count, as {"up": {"block_0": 1.0}}'
        )
    chosen = PRESETS if value == JOINED else (value,)
    return {place: scale for one in chosen for place, scale in PRESETS[one][int(outer == _SDXL)].items()}


def _mapping(value: Mapping[Any, Any], blocks: Blocks, name: str) -> dict[Place, float]:
    """The scales of a mapping by way."""
    scales: dict[Place, float] = {}
    known = [way for way in WAYS if any(block[0] == way for block in blocks)]
    for way, given in value.items():
        where = f"{name}: scale of {short(way)}"
        if way not in known:
            raise ValueError(unknown(f"{where}: this U-Net has no such part", way, known))
        own = {block: count for block, count in blocks.items() if block[0] == way}
        for block, one in _by_block(given, own, where).items():
            count, told = own[block], where if way == "mid" else f"{where}: block_{block[1]}"
            scales |= {(*block, number): scale for number, scale in enumerate(_listed(one, count, told))}
    return scales


def _by_block(given: Any, own: Blocks, where: str) -> dict[tuple[str, int], Any]:
    """What is given for each block of one way."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(own, given)
    (way,) = {block[0] for block in own}
    if way == "mid":
        raise ValueError(f"{where}: the middle is one block; give a number, not {short(given)}")
    found = {}
    for key, one in given.items():
        match = _BLOCK.fullmatch(key) if isinstance(key, str) else None
        block = (way, int(match[1]) if match else -1)
        if block not in own:
            names = [f"block_{number}" for _, number in sorted(own)]
            raise ValueError(unknown(f"{where}: {short(key)} is no block with attention to text", key, names))
        found[block] = one
    return found


def _listed(given: Any, count: int, where: str) -> list[float]:
    """One number for each transformer of a block."""
    if not isinstance(given, list | tuple | np.ndarray):
        return [_number(given, where, "a number, or a list of them")] * count
    if len(given) not in (1, count):
        raise ValueError(f"{where} has {len(given)} numbers for {count} transformers; give one, or as many")
    numbers = [_number(one, f"{where}: number {i}", "a number") for i, one in enumerate(given)]
    return numbers * (count // len(numbers))


def _number(value: Any, where: str, usage: str) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if not is_number(value) or not abs(value) <= LARGEST:  # so that NaN is refused
        raise ValueError(f"{where} must be {usage}, and finite, not {short(value)}")
    return float(value)
