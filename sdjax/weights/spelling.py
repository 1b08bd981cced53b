"""The names of an original file as its authors wrote them, whatever a tool has put before them.

Trainers, mergers and compilers wrap a model in another, and each wrapper adds a word to every name:

    (1)   state_dict.model.diffusion_model.*   model._orig_mod.diffusion_model.*   module.first_stage_model.*
    (2)   diffusion_model.*   unet.*   *       in place of model.diffusion_model.*

So no list of wrappers is kept. A U-Net is known by the names inside it (`input_blocks.0.0.weight`); what stands before
them is its prefix; what stands before the prefix that its authors gave is a wrapper, and is cut off every name. The
autoencoder and the text encoders are known in the same way, once the family is (`original`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sdjax.core.errors import CheckpointError, shown
from sdjax.core.tree import flatten
from sdjax.weights.files import Entry, Header
from sdjax.weights.ldm import UNET_PREFIX
from sdjax.weights.names import spellings

_INSIDE = r"(?:input_blocks|output_blocks|middle_block)\.\d+\."
_ANCHOR = re.compile(rf"((?:.*\.)?){_INSIDE}.*")
_OUTSIDE = re.compile(rf"{_INSIDE}.*|(?:time_embed|label_emb|out)\..*")  # all that a U-Net has
_PREFIX = re.compile(r"(.*?)((?:model\.)?(?:diffusion_model|unet)\.|)")
# What torch's own wrappers put anywhere into a name.
_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGES = {"model_ema", "ema", "ema_model", "params_ema", "averaged_model"}
AVERAGED = re.compile(rf"(.*\.)?({'|'.join(sorted(_AVERAGES))})\..*")
_STEERS = re.compile(r"(.*\.)?(control_model|controlnet|adapter)\..*")  # has blocks of a U-Net and is none


def is_averaged(name: str) -> bool:
    """Whether a tensor is one of the averages that training keeps beside the weights."""
    return AVERAGED.fullmatch(name) is not None


def without_wrappers(header: Header) -> tuple[Header, list[str]]:
    """The header with no wrappers before its names, and its U-Net's as the authors have them.

    Also the names of tensors that are in the file once more. Raises CheckpointError where one comes twice and differs.
    """
    # Where everything is an average, the averages are the model.
    wrappers = _WRAPPERS | (_AVERAGES if all(map(is_averaged, header.tensors)) else set())
    short = {name: ".".join(word for word in name.split(".") if word not in wrappers) for name in header.tensors}
    prefixes = _unet_prefixes(short.values())
    wrapper = _PREFIX.fullmatch(prefixes[0])[1] if prefixes else ""  # type: ignore[index]
    tensors, twice = collect(
        header, {name: _unet_name(one, prefixes) or one.removeprefix(wrapper) for name, one in short.items()}
    )
    return replace(header, tensors=tensors), twice


def without_prefix(header: Header, expected: Mapping[str, Any]) -> Header:
    """The header of one network's file, in the diffusers layout, without the words that stand before all its names.

    `expected` are the network's parameters, which tell such words, as `module.` of `module.conv_in.weight`.
    """
    known = {name for path in flatten(expected) for name in spellings(path)}
    if known & header.tensors.keys():
        return header
    first = next(iter(header.tensors), "").split(".")
    before = [".".join(first[:i]) + "." for i in range(1, len(first)) if ".".join(first[i:]) in known]
    if not before or not all(name.startswith(before[0]) for name in header.tensors):
        return header
    return replace(header, tensors={n.removeprefix(before[0]): entry for n, entry in header.tensors.items()})


def collect(header: Header, renamed: Mapping[str, str]) -> tuple[dict[str, Entry], list[str]]:
    """A header's tensors under new names, and those left out since they say the same once more.

    `renamed` is the new name by that of the header. Of two with one new name, either does where they are equal.
    Raises CheckpointError, naming both, where they are not.
    """
    tensors: dict[str, Entry] = {}
    twice = []
    for name in sorted(renamed, key=lambda name: name != renamed[name]):  # those that keep their name go first
        new, entry = renamed[name], header.tensors[name]
        if new not in tensors:
            tensors[new] = entry
        elif _equal(header, tensors[new], entry):
            twice.append(entry.name)
        else:
            raise CheckpointError(
                f"{header.path} holds one tensor twice, and they differ: {shown(tensors[new].name)} and "
                f"{shown(entry.name)}; two models were mixed. Take the file as its author published it"
            )
    return {renamed[name]: tensors[renamed[name]] for name in renamed}, twice


def _equal(header: Header, one: Entry, other: Entry) -> bool:
    """Whether two tensors hold the same bytes; one may be a linear layer and the other a 1x1 convolution."""
    if one.dtype != other.dtype or one.stop - one.start != other.stop - other.start:
        return False
    left = one.stop - one.start
    with open(header.path, "rb") as first, open(header.path, "rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        while left > 0:
            block = min(left, 1 << 24)
            if first.read(block) != second.read(block):
                return False
            left -= block
    return True


def _unet_prefixes(names: Iterable[str]) -> list[str]:
    """With what the names of the file's U-Nets begin, the authors' own first."""
    found = {match[1] for name in names if (match := _ANCHOR.fullmatch(name)) and not _is_other(name)}
    return sorted(found, key=lambda prefix: (not prefix.endswith(UNET_PREFIX), len(prefix), prefix))


def _unet_name(name: str, prefixes: Iterable[str]) -> str | None:
    """The authors' name of a tensor of the U-Net, given its prefixes in this file; None for others."""
    for prefix in prefixes:
        rest = name.removeprefix(prefix)
        named = _PREFIX.fullmatch(prefix)[2] != ""  # type: ignore[index]
        if name.startswith(prefix) and (named or _OUTSIDE.fullmatch(rest)):
            return UNET_PREFIX + rest
    return None


def _is_other(name: str) -> bool:
    return is_averaged(name) or _STEERS.fullmatch(name) is not None
