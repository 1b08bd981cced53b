"""How IP-Adapter's files name their tensors, and which parameters those are.

    image_proj.*                                              the projection, by its authors' names or by diffusers'
    ip_adapter.<id>.to_k_ip.weight, ip_adapter.<id>.to_v_ip.weight                      a cross-attention's own layers

The ids count the U-Net's attention, self-attention too, so that those of cross-attention are 1, 3, 5 .. (see
`nn.image_prompt.attention_paths` for their order). The authors' resampler keeps keys and values in one tensor, `to_kv`.

Sources: tencent-ailab/IP-Adapter ip_adapter/resampler.py; diffusers' `_convert_ip_adapter_image_proj_to_diffusers`.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import foreign
from sdjax.config.image_prompt import FULL, ImagePromptConfig, Shapes
from sdjax.core import tree
from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.core.limits import MOST_LAYERS
from sdjax.nn.image_prompt import projection_shapes
from sdjax.weights import identify, names
from sdjax.weights.files import Header
from sdjax.weights.names import Place

PROJECTION, ATTENTION = "image_proj", "ip_adapter"
LAYERS = ("to_k_ip", "to_v_ip")
_ID = re.compile(rf"{ATTENTION}\.(\d{{1,9}})\.({'|'.join(LAYERS)})\.weight", re.ASCII)
_ORIGINAL = (  # diffusers' modules by their authors' names, the kind FULL's `norm` aside
    (r"image_embeds", r"proj"),
    (r"ff\.net\.0\.proj", r"proj.0"),
    (r"ff\.net\.2", r"proj.2"),
    (r"(layers\.\d+)\.ln0", r"\1.0.norm1"),
    (r"(layers\.\d+)\.ln1", r"\1.0.norm2"),
    (r"(layers\.\d+)\.attn\.to_q", r"\1.0.to_q"),
    (r"(layers\.\d+)\.attn\.to_[kv]", r"\1.0.to_kv"),
    (r"(layers\.\d+)\.attn\.to_out\.0", r"\1.0.to_out"),
    (r"(layers\.\d+)\.ff\.0", r"\1.1.0"),
    (r"(layers\.\d+)\.ff\.1\.net\.0\.proj", r"\1.1.1"),
    (r"(layers\.\d+)\.ff\.1\.net\.2", r"\1.1.3"),
)
_FACE = (
    "which is not supported: it is told a face by numbers of insightface's recognition networks, whose weights no "
    "package registry has and which are for research alone; take a plus-face adapter, which looks through CLIP"
)
_INSTANT_ID_WIDTH = 512  # of insightface's embedding; no CLIP has states of this width


def check_kind(header: Header) -> None:
    """Raises CheckpointError, saying what a file is that is no IP-Adapter, or one that needs more than a picture."""
    held = header.tensors
    if any(name.startswith(f"{PROJECTION}.perceiver_resampler.") for name in held):
        raise CheckpointError(f"{header.path} is an IP-Adapter FaceID Plus, {_FACE}")
    mlp = f"{PROJECTION}.proj.2.weight" in held and f"{PROJECTION}.proj.3.weight" not in held
    if mlp or any(re.fullmatch(rf"{ATTENTION}\.\d+\.to_\w+_lora\..*", name) for name in held):
        raise CheckpointError(f"{header.path} is an IP-Adapter FaceID, {_FACE}")
    inputs = held.get(f"{PROJECTION}.proj_in.weight")
    if inputs is not None and inputs.shape[1:] == (_INSTANT_ID_WIDTH,):
        raise CheckpointError(f"{header.path} is InstantID's adapter, {_FACE}")
    for part in (PROJECTION, ATTENTION):
        if not any(name.startswith(f"{part}.") for name in held):
            _refuse(header, part)


def _refuse(header: Header, part: str) -> NoReturn:
    """Says what a file is that lacks the tensors of a part."""
    if not header.tensors:
        raise CheckpointError(f"{header.path} holds no tensors")
    half = any(name.startswith((f"{PROJECTION}.", f"{ATTENTION}.")) for name in header.tensors)
    if not half and (what := foreign.what_it_is(header) or identify.foreign(header)):
        raise CheckpointError(f"{header.path} is no IP-Adapter but {what}")
    raise CheckpointError(
        f"{header.path} is no IP-Adapter, or only a part of one: it holds no {part}.*, but:"
        f"{listing(sorted(header.tensors))}"
    )


def projection_of(header: Header) -> Shapes:
    """The shapes of the projection's tensors, by name without what stands before them all."""
    before = f"{PROJECTION}."
    return {name.removeprefix(before): entry.shape for name, entry in header.tensors.items() if name.startswith(before)}


def expected(header: Header, config: ImagePromptConfig) -> dict[str, Any]:
    """The shapes of all parameters that the file should hold: {"image_proj": .., "ip_adapter": {"1": ..}}.

    There are as many layers of attention as the largest id says, each as wide as its own tensors say. Raises
    CheckpointError where that is more than any network has.
    """
    widths: dict[int, int] = {}
    for name, entry in header.tensors.items():
        if match := _ID.fullmatch(name):
            widths.setdefault(int(match[1]), entry.shape[0] if entry.shape else 1)
            if int(match[1]) >= 2 * MOST_LAYERS:
                raise CheckpointError(f"{header.path}: {shown(name)} is of too many layers; at most {MOST_LAYERS} are")
    usual = next(iter(widths.values()), 1)
    attention = {
        str(number): {
            layer: {"kernel": _shape(config.cross_attention_dim, widths.get(number, usual))} for layer in LAYERS
        }
        for number in range(1, max(widths, default=1) + 1, 2)
    }
    return {PROJECTION: projection_shapes(config), ATTENTION: attention}


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def places(kind: str) -> names.Places:
    """Where a parameter may lie in a file of that kind, the authors' names first."""

    def found(path: tree.Path, shape: tree.Shape) -> list[Place]:
        own = names.places(path, shape)
        if path[0] == ATTENTION:
            return own
        other = _original(path[1:], shape, kind)
        return own if other is None else [other, *own]

    return found


def _original(path: tree.Path, shape: tree.Shape, kind: str) -> Place | None:
    """The authors' name of a parameter of the projection; None where it is diffusers' own."""
    module, _, leaf = names.tensor_name(path).rpartition(".")
    shapes = tuple(names.file_shapes(path, shape))
    words = (*_ORIGINAL, (r"norm", r"proj.3")) if kind == FULL else _ORIGINAL
    theirs = next((match.expand(word) for old, word in words if (match := re.fullmatch(old, module))), None)
    if theirs is None:
        return None
    name = f"{PROJECTION}.{theirs}.{leaf}"
    if not theirs.endswith("to_kv"):
        return Place(name, shapes)
    fused = tuple((2 * rows, *rest) for rows, *rest in shapes)
    return Place(name, fused, part=("kv".index(module[-1]), 2))


def tensors(params: Mapping[str, Any], config: ImagePromptConfig) -> dict[str, np.ndarray]:
    """An adapter's parameters by its authors' names and in torch's order of axes, as its file holds them.

    params: {"image_proj": .., "ip_adapter": {"1": ..}}, as `expected` says.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in tree.flatten(params).items():
        array = np.asarray(leaf)
        place = places(config.kind)(path, array.shape)[0]
        found.setdefault(place.name, {})[place.part[0] if place.part else 0] = names.to_file(path, array)
    return {name: np.concatenate([parts[i] for i in sorted(parts)]) for name, parts in found.items()}


def by_id(attention: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """The layers at the paths of a U-Net's cross-attentions, by a file's ids: what `by_path` takes apart."""
    return {str(2 * i + 1): attention[path] for i, path in enumerate(paths)}


def by_path(attention: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """The layers of a file, by id, under the paths of a U-Net's cross-attentions, which are as many."""
    return dict(zip(paths, (attention[one] for one in sorted(attention, key=int)), strict=True))
