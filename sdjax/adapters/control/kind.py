"""What a file of control is, told from its tensors' names; what another file is, where it is none.

controlnet_cond_embedding.conv_in.weight         a ControlNet by diffusers' names; with task_embedding, a Union
control_model.zero_convs.0.0.weight              by its authors' (cldm), perhaps with the whole model beside it
zero_convs.0.0.weight                            the same without the prefix
lora_controlnet                                  a Control-LoRA, in the authors' names
body.0.block1.weight, body.0.resnets.0.block1..  a T2I-Adapter; "adapter." may stand before
lllite_unet_..                                   a ControlNet-LLLite
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, NoReturn

from sdjax.adapters import foreign
from sdjax.adapters.spelling import spell
from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.weights import identify
from sdjax.weights.files import Entry, Header

CONTROLNET, UNION, CONTROL_LORA, T2I, LLLITE = "controlnet", "union", "control_lora", "t2i", "lllite"
TITLES = {
    CONTROLNET: "ControlNet",
    UNION: "ControlNet-Union",
    CONTROL_LORA: "Control-LoRA",
    T2I: "T2I-Adapter",
    LLLITE: "ControlNet-LLLite",
}
DIFFUSERS, SGM = "diffusers", "sgm"
LORA_MARK, DIFFERENCE, TASKS = "lora_controlnet", "difference", "task_embedding"
_MARKS = {DIFFUSERS: "controlnet_cond_embedding.conv_in.weight", SGM: "zero_convs.0.0.weight"}
# Of a file with a prefix: the model that its authors saved beside the ControlNet, and that model's noise schedule.
_BESIDE = re.compile(r"(model|model_ema|first_stage_model|cond_stage_model|conditioner|control_scales)\..*|[^.]+")
_PREFIXES = ("control_model.", "", "controlnet.", "module.")
_T2I = re.compile(r"(?P<prefix>(?:adapter\.)?)body\.0\.(resnets\.0|body\.0)?\.?block1\.weight")
_FOREIGN = re.compile(r"motion_modules?\.|(double|joint)_blocks\.|(^|\.)transformer_blocks\.\d+\.attn\.")
_LLLITE = re.compile(r"lllite_unet_.*")
_READS = "sdjax.load_controlnet reads ControlNets, T2I-Adapters and ControlNet-LLLites"
_ONLY = "this package has Stable Diffusion 1.x, 2.x and XL"
_AGAIN = "it is damaged; download it again"


class Kind(NamedTuple):
    """What a file is.

    Attributes:
      kind: one of TITLES. names: whose they are, DIFFUSERS or SGM.
      tensors: by their names without a prefix, those alone that belong to it. difference: whether they are to be added
        to the U-Net's.
    """

    kind: str
    names: str
    tensors: Mapping[str, Entry]
    difference: bool = False


def kind_of(headers: Iterable[Header]) -> Kind:
    """What the files of one network are. Raises CheckpointError, saying what it is, for anything else."""
    headers = list(headers)
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    found = _controlnet(tensors) or _small(tensors)
    if found is None:
        refuse(replace(headers[0], tensors=tensors))
    return found


def _controlnet(tensors: Mapping[str, Entry]) -> Kind | None:
    if LORA_MARK in tensors:
        return Kind(CONTROL_LORA, SGM, {name: one for name, one in tensors.items() if name != LORA_MARK})
    for prefix in _PREFIXES:
        for dialect, mark in _MARKS.items():
            if prefix + mark in tensors and not _is_foreign(tensors):
                own = _without(prefix, tensors)
                kind = UNION if TASKS in own else CONTROLNET
                return Kind(kind, dialect, own, DIFFERENCE in tensors)
    return None


def _is_foreign(tensors: Mapping[str, Entry]) -> bool:
    """Whether it is for another architecture, as the ControlNets of videos and of Flux."""
    return any(map(_FOREIGN.search, tensors))


def _without(prefix: str, tensors: Mapping[str, Entry]) -> dict[str, Entry]:
    kept = tensors if not prefix else {n: one for n, one in tensors.items() if not _BESIDE.fullmatch(n)}
    return {name.removeprefix(prefix): entry for name, entry in kept.items() if name != DIFFERENCE}


def _small(tensors: Mapping[str, Entry]) -> Kind | None:
    if any(map(_LLLITE.fullmatch, tensors)):
        return Kind(LLLITE, SGM, tensors)
    marks = (found for name in tensors if (found := _T2I.fullmatch(name)))
    if (found := next(marks, None)) is None:
        return None
    own = {name.removeprefix(found["prefix"]): entry for name, entry in tensors.items()}
    return Kind(T2I, DIFFUSERS if ".resnets." in found[0] else SGM, own)


def refuse(header: Header) -> NoReturn:
    """Raises CheckpointError for a file that is none of these, saying what it is and what reads it."""
    path, names = header.path, sorted(map(shown, header.tensors))
    if not names:
        raise CheckpointError(f"{path} holds no tensors")
    if _is_foreign(header.tensors):
        raise CheckpointError(f"{path} is for another architecture (video, Flux, Stable Diffusion 3): {_ONLY}")
    if (what := identify.foreign(header)) and "load_controlnet" in what:
        raise CheckpointError(f"{path} is a part of a control: no {' or '.join(_MARKS.values())} is in it; {_AGAIN}")
    if what := what or identify.embedding(header):
        raise CheckpointError(f"{path} is {what}")
    if foreign.is_checkpoint(header):
        raise CheckpointError(f"{path} is a checkpoint, or a part of one, and no control: open it with sdjax.load")
    spelled = spell(header.tensors)
    if spelled.known or spelled.words:
        raise CheckpointError(f"{path} is an adapter of weights and no control: sdjax.load_adapter reads it")
    raise CheckpointError(f"{path} is no control that is known; {_READS}; this file holds:{listing(names)}")
