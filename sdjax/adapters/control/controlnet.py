"""ControlNets from their files: diffusers' names or their authors', whole, as differences, or in thin factors.

Whatever the layout, each parameter has its places, and reading is as strict as a checkpoint's (`weights.tensors`): a
tensor too many, too few or of another shape is told, with the nearest name. Numbers stay in the file.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sdjax.adapters.control.facts import config_of, union_of
from sdjax.adapters.control.kind import CONTROL_LORA, DIFFUSERS, TITLES, Kind
from sdjax.adapters.control.locate import Located
from sdjax.adapters.control.weights import Change, Difference, Factors, Weights, unchanged
from sdjax.config.controlnet import ControlNetConfig
from sdjax.core import tree
from sdjax.core.errors import CheckpointError
from sdjax.core.tree import Path, Shape
from sdjax.nn.shapes import expected_network
from sdjax.weights import ldm, names
from sdjax.weights.files import Entry, Header
from sdjax.weights.names import Place, Places
from sdjax.weights.tensors import ErrorContext, in_the_file, read_tensors

# What is a ControlNet's own, and no copy of a U-Net's.
_OWN = ("controlnet_", "control_add_embedding", "task_embedding", "transformer_layes.", "spatial_ch_projs")
_V_PROJECTION = ".v_proj"
_REMEDY = "download it again, or give the folder that it lies in with its config.json"


def read_controlnet(located: Located, kind: Kind) -> tuple[ControlNetConfig, Weights]:
    """The config and the weights of a ControlNet, a Union or a Control-LoRA. Raises CheckpointError, ConfigError."""
    config = _config(located, kind)
    expected = {path: tuple(leaf.shape) for path, leaf in tree.flatten(expected_network(config)).items()}
    places = _places(config, kind)
    if kind.kind == CONTROL_LORA:
        return config, _read_factors(located, kind, expected, places)
    held = _read(located, kind, expected, places)
    if not kind.difference:
        return config, Weights(held, {}, {})
    copied = {path: array for path, array in held.items() if not path[0].startswith(_OWN)}
    whole = {path: array for path, array in held.items() if path not in copied}
    changes: dict[Path, Change] = {path: Difference(array) for path, array in copied.items()}
    return config, Weights(whole, changes, {path: expected[path] for path in copied})


def _config(located: Located, kind: Kind) -> ControlNetConfig:
    """What config.json says, but for how many kinds of maps there are, or else what the tensors tell."""
    if located.config is None:
        return config_of(kind.tensors, kind.names, str(located.path))
    return ControlNetConfig.from_dict({**located.config, **union_of(kind.tensors)}, located.config_path)


def _places(config: ControlNetConfig, kind: Kind) -> Places:
    """Where each parameter may lie, by the names without a prefix."""
    modules = {} if kind.names == DIFFUSERS else sgm_names(config)

    def places(path: Path, shape: Shape) -> list[Place]:
        if len(path) > 1 and path[-2].endswith(_V_PROJECTION):
            return [_third(path, shape)]
        found = names.places(path, shape)
        return [replace(one, name=ldm.renamed(one.name, modules)) for one in found]

    return places


def _third(path: Path, shape: Shape) -> Place:
    """torch's attention holds queries, keys and values in one tensor; a Union needs the values alone (`nn.union`)."""
    leaf = "weight" if path[-1] == "kernel" else "bias"
    above = ".".join(path[:-1]).removesuffix(_V_PROJECTION)
    ((rows, *rest),) = names.file_shapes(path, shape)
    return Place(f"{above}.in_proj_{leaf}", ((3 * rows, *rest),), part=(2, 3))


def sgm_names(config: ControlNetConfig) -> dict[str, str]:
    """The authors' name of every module of a ControlNet, by diffusers' (lllyasviel/ControlNet, cldm/cldm.py)."""
    found = ldm.unet_modules(config.unet)
    pairs = 2 * (len(config.conditioning_embedding_out_channels) - 1)
    hints = ["conv_in", *(f"blocks.{i}" for i in range(pairs)), "conv_out"]
    found |= {f"controlnet_cond_embedding.{one}": f"input_hint_block.{2 * i}" for i, one in enumerate(hints)}
    found |= {f"controlnet_down_blocks.{j}": f"zero_convs.{j}.0" for j in range(config.outputs - 1)}
    return found | {"controlnet_mid_block": "middle_block_out.0"}


def _read(
    located: Located, kind: Kind, expected: Mapping[Path, Shape], places: Places, note: str = ""
) -> dict[Path, np.ndarray]:
    """The tensors of these paths, in our order of axes."""
    blame = ErrorContext(f"{located.path} is no {TITLES[kind.kind]} as it says{note}", _REMEDY)
    shapes = tree.unflatten({path: _Shape(shape) for path, shape in expected.items()})
    read, _ = read_tensors(own_headers(located, kind), shapes, places, blame, place=in_the_file)
    return tree.flatten(read)


def own_headers(located: Located, kind: Kind) -> list[Header]:
    """The headers of a net's files with its own tensors alone, by their names without a prefix."""
    held = {header.path: dict[str, Entry]() for header in located.headers}
    home = {id(entry): header.path for header in located.headers for entry in header.tensors.values()}
    for name, entry in kind.tensors.items():
        held[home[id(entry)]][name] = entry
    return [replace(header, tensors=held[header.path]) for header in located.headers]


class _Shape:
    """What `read_tensors` asks of a leaf that it is to find."""

    def __init__(self, shape: Shape):
        self.shape = shape


def _read_factors(located: Located, kind: Kind, expected: Mapping[Path, Shape], places: Places) -> Weights:
    """A Control-LoRA: what is in thin factors, what is whole, and what is left to the U-Net."""
    layers = {path: _layer(places(path, shape)[0].name) for path, shape in expected.items()}
    ranks = {path: _rank(located, kind, layer) for path, layer in layers.items() if path[-1] == "kernel"}
    wanted: dict[Path, Shape] = {}
    for path, shape in expected.items():
        if rank := ranks.get(path):
            outward, *inward = names.file_shapes(path, shape)[0]
            wanted |= {(*path, "up"): (outward, rank), (*path, "down"): (rank, *inward)}
        elif path[0].startswith(_OWN) or any(one.name in kind.tensors for one in places(path, shape)):
            wanted[path] = shape

    def of_factors(path: Path, shape: Shape) -> list[Place]:
        if path[-1] not in ("up", "down") or path[-2] != "kernel":
            return places(path, shape)
        shapes = [shape, (*shape, 1, 1)] if len(shape) == 2 else [shape]
        return [Place(f"{layers[path[:-1]]}.{path[-1]}", tuple(shapes))]

    held = _read(located, kind, wanted, of_factors)
    changes: dict[Path, Change] = {
        path: Factors(held.pop((*path, "up")), held.pop((*path, "down"))) if ranks.get(path) else unchanged
        for path in expected
        if path not in wanted
    }
    return Weights(held, changes, {path: expected[path] for path in changes})


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _rank(located: Located, kind: Kind, layer: str) -> int | None:
    """Of the factors of a layer; None where it has none. Raises CheckpointError where one is there alone."""
    up, down = (kind.tensors.get(f"{layer}.{one}") for one in ("up", "down"))
    if (up is None) != (down is None):
        raise CheckpointError(f"{located.path} has {layer}.{'down' if up is None else 'up'} without the other factor")
    return down.shape[0] if down is not None and down.shape else None
