"""A checkpoint in one file, in the layout of the authors' own programs (see `original`).

Such a file says nothing about itself but its tensors' names and shapes. They tell the family (`families`), whose
configs, scheduler and vocabulary are then those of the published checkpoint (`config.presets`); nothing is fetched.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.config.components import TOKENIZERS
from sdjax.config.presets import PRESETS, Preset
from sdjax.core.errors import CheckpointError, listing
from sdjax.text.vocabulary import clip_tokenizer_files
from sdjax.weights import identify
from sdjax.weights.checkpoint import Checkpoint, Json
from sdjax.weights.families import Shape, candidates, shape_of_file
from sdjax.weights.files import Header, read_single_header
from sdjax.weights.ldm import UNET_PREFIX
from sdjax.weights.load import read_otherwise
from sdjax.weights.names import Layout
from sdjax.weights.original import TWICE, Original, Sorted
from sdjax.weights.prediction import Prediction, check_type, decide
from sdjax.weights.save import default_layout
from sdjax.weights.spelling import without_wrappers
from sdjax.weights.tensors import ErrorContext, on_device, read_tensors

_DISTILLED = f"{UNET_PREFIX}time_embed.cond_proj.weight"  # latent consistency models know the guidance scale
_MOST_LEFT = 20  # kinds that a note names
# What a pipeline could have beside its networks, for which diffusers looks in model_index.json.
_ABSENT = {
    "XL": ("feature_extractor", "image_encoder", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "Depth": ("depth_estimator", "feature_extractor"),
    "Upscale": ("low_res_scheduler", "watermarker", "safety_checker", "feature_extractor"),
    "": ("safety_checker", "feature_extractor", "image_encoder"),
}


def open_single_file(
    path: str | os.PathLike[str], prediction_type: str | None = None, *, presets: Mapping[str, Preset] = PRESETS
) -> Checkpoint:
    """A .safetensors file in the original layout: its family is recognised and checked, no weight is read.

    `prediction_type` ("epsilon", "v_prediction", "sample") overrules what the file suggests (see `prediction`);
    `presets` are the families to choose from. Raises CheckpointError: the file is damaged, is something else (a LoRA,
    an embedding, a VAE, another architecture: the message says what), or holds tensors that are not known. Raises
    ValueError for an unknown prediction type.
    """
    check_type(prediction_type)
    path = Path(path)
    header, twice = _whole(read_single_header(path))
    shape = shape_of_file(header)
    families = candidates(shape, presets, str(path))
    prediction = decide(header, families, prediction_type)
    preset = _choose(families, prediction)
    configs = _configs(preset, shape, header)
    tensors = Original(configs).sort(header)
    tensors = replace(tensors, leftovers={**dict.fromkeys(twice, TWICE), **tensors.leftovers})
    reader = _Reader(header, preset.title, configs, tensors)
    reader.check()
    return Checkpoint(configs, _files(preset, prediction), reader, tuple(_notes(reader, preset, shape, prediction)))


def _whole(header: Header) -> tuple[Header, list[str]]:
    """The header by the authors' names, and tensors that are there once more; CheckpointError for no checkpoint."""
    if identify.foreign(header):
        identify.refuse(header)
    named, twice = without_wrappers(header)
    unet = [name for name in named.tensors if name.startswith(UNET_PREFIX)]
    alone = len(unet) == len(named.tensors) and not any(name.startswith(UNET_PREFIX) for name in header.tensors)
    if identify.foreign(named) or alone or not any(name.startswith(f"{UNET_PREFIX}input_blocks.") for name in unet):
        identify.refuse(named if identify.foreign(named) else header)
    return named, twice


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads one component's weights out of the file."""

    header: Header
    title: str
    configs: Mapping[str, Json]
    tensors: Sorted

    def check(self) -> None:
        """Raises CheckpointError for a text encoder of another family's and for one that is missing."""
        path, strangers = self.header.path, self.tensors.strangers
        if strangers:
            raise CheckpointError(
                f"{path} has the U-Net of {self.title}, but {len(strangers)} tensors of a text encoder that is another "
                f"family's: two were mixed:{listing(sorted(strangers))}"
            )
        missing = [name for name, held in self.tensors.components.items() if name in TOKENIZERS and not held]
        if missing:
            prefix = Original(self.configs).prefix(missing[0])
            raise CheckpointError(
                f"{path} has the U-Net of {self.title}, but no {' and no '.join(missing)} ({prefix}*): it is not a "
                "whole checkpoint. Put it in a folder in the diffusers layout beside those of another checkpoint"
            )

    def __call__(
        self,
        component: str,
        expected: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        place: Callable[[np.ndarray], Any] = on_device,
    ) -> tuple[dict[str, Any], Layout]:
        own = self.tensors.components[component]
        if not own:
            raise CheckpointError(f"{self.header.path} holds no {component}; give one with {component}=")
        blame = ErrorContext(
            f"{self.header.path} does not hold the {component} of {self.title}",
            "the file is damaged or of a family that is not known: download it again, or convert it to a folder"
            + (f". Left aside in it: {_left(self.tensors.leftovers)}" if self.tensors.leftovers else ""),
        )
        places = Original(self.configs).places(component)
        params, found = read_tensors([replace(self.header, tensors=own)], expected, places, blame, dtype, place)
        return params, default_layout(params, self.configs[component], {path: one.dtype for path, one in found.items()})


def _choose(families: Mapping[str, Preset], prediction: Prediction) -> Preset:
    """Of the families with one shape that whose own prediction type was decided on, else the first."""
    fitting = [p for p in families.values() if p.scheduler.get("prediction_type", "epsilon") == prediction.type]
    return [*fitting, *families.values()][0]


def _configs(preset: Preset, shape: Shape, header: Header) -> dict[str, Json]:
    """The family's configs, with what else the file shows of its U-Net."""
    unet = {**preset.configs["unet"], "in_channels": shape.in_channels}
    if _DISTILLED in header.tensors and len(header.tensors[_DISTILLED].shape) == 2:
        unet["time_cond_proj_dim"] = header.tensors[_DISTILLED].shape[1]
    return {**preset.configs, "unet": unet}


def _files(preset: Preset, prediction: Prediction) -> dict[str, bytes]:
    """What else a folder of this family holds, by path."""
    scheduler = {**preset.scheduler, "prediction_type": prediction.type, **prediction.changes}
    files = {"model_index.json": _json(_index(preset)), "scheduler/scheduler_config.json": _json(scheduler)}
    for folder, pad in preset.pad_tokens.items():
        files |= {f"{folder}/{name}": data for name, data in clip_tokenizer_files(pad).items()}
    return files


def _index(preset: Preset) -> dict[str, Any]:
    """model_index.json: what the family has by class, what its pipeline could have had as [null, null]."""
    absent = next(names for kind, names in _ABSENT.items() if kind in preset.pipeline)
    index: dict[str, Any] = {"_class_name": preset.pipeline} | {name: [None, None] for name in absent}
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    for name, config in preset.configs.items():
        index[name] = (
            ["transformers", config["architectures"][0]] if name in TOKENIZERS else ["diffusers", config["_class_name"]]
        )
    index |= {folder: ["transformers", "CLIPTokenizer"] for folder in preset.pad_tokens}
    return index | {"scheduler": ["diffusers", preset.scheduler["_class_name"]], **preset.index}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _notes(reader: _Reader, preset: Preset, shape: Shape, prediction: Prediction) -> list[str]:
    path, notes = reader.header.path, []
    if prediction.note:
        notes.append(f"{path} ({preset.title}) predicts {prediction.note}")
    if shape.in_channels != preset.configs["unet"]["in_channels"]:
        notes.append(f"{path} ({preset.title}): its U-Net has {shape.in_channels} input channels, as no published one")
    used = [entry for own in reader.tensors.components.values() for entry in own.values()]
    notes += [f"{path} is {what}" for what in read_otherwise(used)]
    if not reader.tensors.components["vae"]:
        notes.append(f"{path} holds no VAE: give one with vae=")
    if reader.tensors.leftovers:
        notes.append(f"{path}: left alone, since no picture needs it: {_left(reader.tensors.leftovers)}")
    return notes


def _left(leftovers: Mapping[str, str]) -> str:
    """What was left aside, by kind, with how many tensors there are."""
    counts = Counter(leftovers.values())
    listed = [f"{what} ({count} tensors)" for what, count in list(counts.items())[:_MOST_LEFT]]
    more = [f"and {len(counts) - _MOST_LEFT} kinds more"] if len(counts) > _MOST_LEFT else []
    return ", ".join([*listed, *more])
