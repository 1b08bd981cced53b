"""T2I-Adapters from their files: diffusers' names, or their authors', whose resnets are numbered in one row.

ours, diffusers (after "adapter.")      TencentARC/T2I-Adapter
body.1.resnets.0.block1                 body.2.block1        two resnets a stage, numbered through
body.1.in_conv                          body.2.in_conv       of the stage's first
body.1.resnets.0.block1 (light)         body.1.body.0.block1
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdjax.adapters.control.controlnet import own_headers
from sdjax.adapters.control.kind import DIFFUSERS, TITLES, Kind
from sdjax.adapters.control.locate import Located
from sdjax.adapters.control.weights import Weights
from sdjax.config.t2i_adapter import FULL, LIGHT, XL, T2IAdapterConfig
from sdjax.core import tree
from sdjax.core.errors import CheckpointError
from sdjax.core.tree import Path, Shape
from sdjax.nn.shapes import expected_network
from sdjax.weights import names
from sdjax.weights.files import Entry
from sdjax.weights.names import Place
from sdjax.weights.tensors import ErrorContext, in_the_file, read_tensors

_RESNET = re.compile(r"body\.(\d{1,2})\.(?:(?:resnets|body)\.(\d{1,2})\.)?block1\.bias")
_INSIDE = re.compile(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.*)")
_SQUARES = {1: 8, 3: 8}  # channels of a picture, and how many pixels a side are one place, but for XL
_ROW = 2  # resnets of a stage, where they are numbered in one row


def read_t2i_adapter(located: Located, kind: Kind) -> tuple[T2IAdapterConfig, Weights]:
    """The config and the weights of a T2I-Adapter. Raises CheckpointError, ConfigError."""
    where = str(located.path)
    config = _told(kind.tensors, where)
    if located.config is not None:
        config = T2IAdapterConfig.from_dict(located.config, located.config_path)
    blame = ErrorContext(f"{where} is no {TITLES[kind.kind]} as it says", "download it again")

    def places(path: Path, shape: Shape) -> list[Place]:
        found = names.places(path, shape)
        if kind.names == DIFFUSERS:
            return found
        return [replace(one, name=_theirs(one.name, config)) for one in found]

    expected = expected_network(config)
    read, _ = read_tensors(own_headers(located, kind), expected, places, blame, place=in_the_file)
    return config, Weights(tree.flatten(read), {}, {})


def _theirs(name: str, config: T2IAdapterConfig) -> str:
    """The authors' name of a tensor, by ours."""
    found = _INSIDE.fullmatch(name)
    if found is None:
        return name
    stage, resnet, rest = found.groups()
    if config.adapter_type == LIGHT:
        return f"body.{stage}.{rest}" if resnet is None else f"body.{stage}.body.{resnet}.{rest}"
    return f"body.{int(stage) * config.resnets + int(resnet or 0)}.{rest}"


def _told(tensors: Mapping[str, Entry], where: str) -> T2IAdapterConfig:
    """What the names and shapes say. Raises CheckpointError where the four stages are not there."""
    light = "conv_in.weight" not in tensors
    resnets = {(int(found[1]), int(found[2] or 0)) for one in tensors if (found := _RESNET.fullmatch(one))}
    row = not light and all(resnet == 0 for _, resnet in resnets) and len(resnets) > 4
    stages = len({stage for stage, _ in resnets}) // (_ROW if row else 1)
    first = tensors.get("body.0.in_conv.weight" if light else "conv_in.weight")
    if stages != 4 or first is None or len(first.shape) != 4:
        raise CheckpointError(f"{where} is a T2I-Adapter without its {'four stages' if first else 'first convolution'}")
    widths = [_width(tensors, stage, light, row) for stage in range(stages)]
    # Where 3 x 8 x 8 or 1 x 8 x 8 numbers go in it is of a family with 8 pixels to a latent, else of XL.
    inputs = first.shape[1]
    pixels, kind = (8, LIGHT if light else FULL) if inputs <= 3 * 64 else (16, XL)
    config: dict[str, Any] = {
        "adapter_type": kind,
        "in_channels": inputs // pixels**2,
        "channels": widths[:3] if light else widths,
        "num_res_blocks": _ROW if row else 1 + max(resnet for _, resnet in resnets),
        "downscale_factor": pixels,
    }
    return T2IAdapterConfig.from_dict(config, where)


def _width(tensors: Mapping[str, Entry], stage: int, light: bool, row: bool) -> int:
    """The channels of a stage's features."""
    if light:
        ends = (f"body.{stage}.out_conv.bias",)
    else:
        first = stage * (_ROW if row else 1)
        ends = (f"body.{first}.block2.bias", f"body.{first}.resnets.0.block2.bias")
    return next((tensors[name].shape[0] for name in ends if name in tensors and tensors[name].shape), 0)
