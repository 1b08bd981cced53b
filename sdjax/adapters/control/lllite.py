"""ControlNet-LLLites from their files: which layers of an SDXL U-Net each stands before, by kohya's names.

    lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight   [e/2, 3, 4, 4]
                                                                .conditioning1.2.weight   [e, e/2, 2, 2]
                                                                .down.0  .mid.0  .up.0    linear layers

Source: kohya-ss/sd-scripts, networks/control_net_lllite.py.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

from sdjax.adapters.control.controlnet import own_headers
from sdjax.adapters.control.kind import TITLES, Kind
from sdjax.adapters.control.locate import Located
from sdjax.adapters.control.weights import Weights
from sdjax.config import UNetConfig
from sdjax.config.lllite import STRIDES, LLLiteConfig, LLLiteModule
from sdjax.config.presets import PRESETS
from sdjax.core import tree
from sdjax.core.errors import CheckpointError, shown
from sdjax.core.tree import Path, Shape
from sdjax.nn.shapes import expected_network
from sdjax.weights import ldm, names
from sdjax.weights.files import Entry
from sdjax.weights.names import Place
from sdjax.weights.tensors import ErrorContext, in_the_file, read_tensors

_NAME = re.compile(r"lllite_unet_(?P<module>\w+)\.(?P<layer>conditioning1\.\d|down\.0|mid\.0|up\.0)\.(weight|bias)")
_LAYER = re.compile(r"(?P<block>\w+?)_transformer_blocks_(?P<layer>\d{1,3})_(?P<inside>\w+)")
_INSIDE = {
    "attn1_to_q": ("attn1", "to_q"), "attn1_to_k": ("attn1", "to_k"), "attn1_to_v": ("attn1", "to_v"),
    "attn1_to_out_0": ("attn1", "to_out.0"), "attn2_to_q": ("attn2", "to_q"), "attn2_to_out_0": ("attn2", "to_out.0"),
    "ff_net_0_proj": ("ff", "net.0.proj"), "ff_net_2": ("ff", "net.2"),
}  # fmt: skip


def read_lllite(located: Located, kind: Kind) -> tuple[LLLiteConfig, Weights]:
    """The config and the weights of a ControlNet-LLLite. Raises CheckpointError."""
    where = str(located.path)
    modules = _modules(kind.tensors, where)
    config = LLLiteConfig(tuple(_module(kind.tensors, name, path, where) for name, path in modules.items()))
    by_path = {".".join(path): name for name, path in modules.items()}

    def places(path: Path, shape: Shape) -> list[Place]:
        above, *rest = path
        found = names.places((by_path[above], *rest), shape)
        return [Place(f"lllite_unet_{one.name}", one.shapes) for one in found]

    blame = ErrorContext(f"{where} is no {TITLES[kind.kind]} as it says", "download it again")
    expected = expected_network(config)
    read, _ = read_tensors(own_headers(located, kind), expected, places, blame, place=in_the_file)
    return config, Weights(tree.flatten(read), {}, {})


def _modules(tensors: Iterable[str], where: str) -> dict[str, Path]:
    """Of each module in the file, by its name, where it stands in the U-Net's parameters."""
    found: dict[str, Path] = {}
    for tensor in tensors:
        match = _NAME.fullmatch(tensor)
        path = match and _path(match["module"])
        if not match or not path:
            raise CheckpointError(
                f"{where}: {shown(tensor)} means nothing here; an LLLite stands before a dense layer of a transformer, as "
                "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"
            )
        found[match["module"]] = path
    return found


def _path(module: str) -> Path | None:
    found = _LAYER.fullmatch(module)
    block = found and _blocks().get(found["block"])
    if not found or not block or found["inside"] not in _INSIDE:
        return None
    return (*block, f"transformer_blocks.{int(found['layer'])}", *_INSIDE[found["inside"]])


@cache
def _blocks() -> Mapping[str, Path]:
    """Where each transformer of SDXL's U-Net stands, by the names that it has in files."""
    modules = ldm.unet_modules(UNetConfig.from_dict(PRESETS["sdxl"].configs["unet"]))
    found = {}
    for ours, theirs in modules.items():
        if match := re.fullmatch(r"(.*)\.(attentions\.\d+)", ours):
            path = (match[1], match[2])
            found |= {theirs.replace(".", "_"): path, ours.replace(".", "_"): path}
    return found


def _module(tensors: Mapping[str, Entry], name: str, path: Path, where: str) -> LLLiteModule:
    """The sizes of one module. Raises CheckpointError where what tells them is not there."""

    def shape(layer: str, axes: int) -> tuple[int, ...]:
        entry = tensors.get(f"lllite_unet_{name}.{layer}.weight")
        if entry is None or len(entry.shape) != axes:
            held = "is missing" if entry is None else f"must have {axes} axes, not {list(entry.shape)}"
            raise CheckpointError(f"{where}: lllite_unet_{name}.{layer}.weight {held}")
        return entry.shape

    convolutions = sum(f"lllite_unet_{name}.conditioning1.{2 * i}.weight" in tensors for i in range(4))
    kernels = tuple(shape(f"conditioning1.{2 * i}", 4)[-1] for i in range(convolutions))
    depth = next((depth for depth, strides in STRIDES.items() if strides == kernels), None)
    if depth is None:
        raise CheckpointError(f"{where}: lllite_unet_{name}.conditioning1 has kernels {list(kernels)}, as none known")
    inner, features = shape("down.0", 2)
    return LLLiteModule(path, depth, shape(f"conditioning1.{2 * convolutions - 2}", 4)[0], inner, features)
