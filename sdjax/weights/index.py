"""What a folder in the diffusers layout says about itself: its `model_index.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdjax.config.components import COMPONENTS, TOKENIZERS, VARIATION
from sdjax.core.errors import CheckpointError, listing, nearest, shown
from sdjax.weights.files import parse_json, read_bytes, read_text
from sdjax.weights.links import home_of, within

# The pipelines whose networks are all here. One of them differs from another in what it does with the networks,
# which the U-Net's own config tells as well.
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy", "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline",
    "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline", "StableDiffusionImageVariationPipeline",
)  # fmt: skip
# What only these pipelines use; in any other it is left alone. The feature extractor goes with it.
OWN = {one.only: name for name, one in COMPONENTS.items() if one.only}
# The classes that are known of each part.
CLASSES: Mapping[str, tuple[str, ...]] = {
    **{name: one.classes for name, one in COMPONENTS.items()},
    **{one.tokenizer: one.tokenizer_classes for one in COMPONENTS.values() if one.tokenizer},
    "scheduler": (
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
        "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
    ),
}  # fmt: skip
# Not needed for a picture, but by those of `OWN`. The upscaler's second scheduler is a config without weights, and is
# kept as a file.
IGNORED = (
    "safety_checker", "feature_extractor", *OWN.values(), "low_res_scheduler", "watermark", "watermarker",
)  # fmt: skip
# A tokenizer's vocabulary is in one of these sets of files.
VOCABULARIES = ({"vocab.json", "merges.txt"}, {"tokenizer.json"})
TOKENIZER_FILES = (
    "added_tokens.json", "grammar.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
# What a picture needs of the other folders; whatever else lies there is neither read nor copied.
_SIDE = {
    **dict.fromkeys(TOKENIZERS.values(), TOKENIZER_FILES),
    "scheduler": ("scheduler_config.json",),
    "low_res_scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
}


@dataclass(frozen=True)
class ModelIndex:
    """A checkpoint's `model_index.json`: the class of each component in use, and those left alone."""

    folder: Path
    pipeline: str
    components: Mapping[str, str]
    ignored: tuple[str, ...]
    text: str


def read_index(folder: str | os.PathLike[str]) -> ModelIndex:
    """Read and check `folder/model_index.json`. Raises CheckpointError for a class that is not supported."""
    path = Path(folder) / "model_index.json"
    if not os.path.isdir(folder):
        raise CheckpointError(f"{shown(str(folder))} is no folder")
    files = sorted(file.name for file in path.parent.glob("*.safetensors"))
    if files and not os.path.lexists(path):
        raise CheckpointError(
            f"{path} is missing: the folder is no checkpoint in the diffusers layout, but holds {listing(files, 4)}\n  "
            "If one of these is a whole checkpoint, give its own path; a LoRA is for sdjax.load_adapter"
        )
    text = read_text(within(path, home_of(path.parent)))
    found = parse_json(text, path)
    pipeline = found.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(
            f"{path}: _class_name {shown(repr(pipeline))} is not supported; supported: {', '.join(PIPELINES)}"
        )
    pairs = {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 2}
    present = {name: kind for name, (_, kind) in pairs.items() if kind is not None}
    for name in present:
        if name not in CLASSES and name not in IGNORED:
            raise CheckpointError(f"{path}: component {shown(repr(name))} is not known{nearest(name, CLASSES)}")
    own = OWN.get(pipeline)
    used = [name for name in CLASSES if name not in OWN.values() or name == own]
    components = {name: present[name] for name in used if name in present}
    for name in _required(components, pipeline):
        if components.get(name) not in CLASSES[name]:
            supported = ", ".join(CLASSES[name])
            raise CheckpointError(
                f"{path}: {name} is {shown(repr(present.get(name, 'missing')))}; supported: {supported}"
            )
    kept = (own, "feature_extractor") if own in components else ()
    ignored = tuple(name for name in IGNORED if name in present and name not in kept)
    return ModelIndex(path.parent, pipeline, components, ignored, text)


def _required(components: Mapping[str, str], pipeline: str) -> list[str]:
    """What must be there: the networks, with each text encoder its tokenizer, and every one that is named."""
    networks = ["unet", "vae", "scheduler", *(name for name in OWN.values() if name in components)]
    if pipeline == VARIATION:
        return list(dict.fromkeys([*networks, "image_encoder"]))
    text = [part for pair in TOKENIZERS.items() if set(pair) & set(components) for part in pair]
    return list(dict.fromkeys([*networks, *(text or ("text_encoder", "tokenizer"))]))


def side_files(index: ModelIndex) -> dict[str, bytes]:
    """What a checkpoint holds beside its networks, by path from its root, so that saving can write it back.

    That is the tokenizers, the schedulers and `model_index.json`, the latter as it stands unless it names
    components that are left alone: those become `[null, null]`, since their folders are not written and
    diffusers would look for them. Raises CheckpointError, also for a link that leads out of the checkpoint.
    """
    found: dict[str, bytes] = {}
    home, extractor = home_of(index.folder), "feature_extractor"
    for part, known in _SIDE.items():
        if part != extractor or extractor not in index.ignored:
            paths = [index.folder / part / name for name in known]
            found |= {f"{part}/{path.name}": read_bytes(within(path, home)) for path in paths if os.path.lexists(path)}
    text, gone = index.text, [name for name in index.ignored if name not in _SIDE or name == extractor]
    if gone:
        text = json.dumps(json.loads(text) | {name: [None, None] for name in gone}, indent=2) + "\n"
    return {"model_index.json": text.encode(), **found}
