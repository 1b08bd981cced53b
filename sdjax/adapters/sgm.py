"""The original names of a U-Net's modules, from its parameters alone.

An adapter is given parameters and no config, and the parameters tell all that the names depend on: how many resnets
each level has, and whether a level attends on the way up, where the doubling is the block's third module and not its
second (`weights.ldm`).
"""

import re
from collections.abc import Mapping
from typing import Any

from sdjax.core import tree
from sdjax.weights import ldm

_RESNET = re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)\..*")
_UP = re.compile(r"up_blocks\.(\d+)\.(attentions)?.*")


def module_paths(params: Mapping[str, Any]) -> list[str]:
    """Every module of a network that has parameters of its own, joined by dots, in the order of its tree."""
    return list(dict.fromkeys(".".join(path[:-1]) for path in tree.flatten(params)))


def sgm_modules(params: Mapping[str, Any]) -> dict[str, str]:
    """The original (SGM's) path of every module of a U-Net, without a prefix, by ours; params: the U-Net's tree.

    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2".
    """
    paths = module_paths(params)
    down = {(int(found[1]), int(found[2])) for path in paths if (found := _RESNET.fullmatch(path))}
    up = {(int(found[1]), found[2] is not None) for path in paths if (found := _UP.fullmatch(path))}
    levels = range(len({level for level, _ in down}))
    words = ldm.unet_words(
        [sum(level == one for one, _ in down) for level in levels],
        [(level, True) in up for level in levels],
    )
    return {path: ldm.renamed(f"{path}.", words).removesuffix(".") for path in paths}
