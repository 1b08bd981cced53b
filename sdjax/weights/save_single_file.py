"""Back to the original layout: a whole checkpoint as one file that A1111, ComfyUI and their like open.

Every tensor gets the name, the shape and the order of axes that `single_file` reads, so that a file that was opened,
saved as a folder and exported again holds the same tensors bit for bit. What was left aside on reading (averaged
weights, the last layer that Stable Diffusion 2 does not use) is gone.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.core import tree
from sdjax.core.errors import CheckpointError
from sdjax.weights import names
from sdjax.weights.checkpoint import Json
from sdjax.weights.names import DTYPES, Layout, Place
from sdjax.weights.original import Original
from sdjax.weights.prediction import V_PRED, ZTSNR
from sdjax.weights.save import in_file, stored_dtypes
from sdjax.weights.write import Draft, make_folder, write_file, write_tensors

Components = Mapping[str, tuple[Mapping[str, Any], Layout]]


def save_single_file(
    path: str | os.PathLike[str],
    configs: Mapping[str, Json],
    components: Components,
    scheduler: Json,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint in the original layout.

    Args:
      path: the .safetensors file; it is replaced once the new one is complete.
      configs: config.json by component. components: (params, layout) by component, as `Checkpoint.read` gives them;
        each parameter keeps its file's dtype where that loses nothing.
      scheduler: scheduler_config.json. An original file cannot say what its U-Net predicts: an SDXL that predicts the
        velocity is marked as ComfyUI and A1111 expect it, any file by its metadata.
      metadata: of the file, over `{"format": "pt"}`.

    Raises CheckpointError where the file cannot be written or parameters are of a kind that files do not hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or path.is_dir():
        raise CheckpointError(f"{path} is no name for a single file; let it end with .safetensors")
    layout = Original(configs)
    tensors: dict[str, Draft] = {}
    for component, (params, own) in components.items():
        tensors |= _drafts(tree.flatten(params), own, layout.places(component))
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts == "v_prediction" and configs["unet"].get("addition_embed_type") == "text_time":
        marks = [V_PRED, *([ZTSNR] if scheduler.get("rescale_betas_zero_snr") else [])]
        tensors |= {mark: Draft.of(np.zeros(0, np.float32)) for mark in marks}
    stated = {"modelspec.prediction_type": "v" if predicts == "v_prediction" else str(predicts)}
    make_folder(path.parent)
    write_file(path, partial(write_tensors, tensors, {"format": "pt", **stated, **(metadata or {})}))


def _drafts(flat: Mapping[tree.Path, Any], layout: Layout, places: names.Places) -> dict[str, Draft]:
    """The file's tensors, by name."""
    codes = stored_dtypes(flat, layout)
    sharing: dict[str, list[tuple[Place, tree.Path]]] = {}
    for path, array in flat.items():
        place = places(path, tuple(array.shape))[0]
        sharing.setdefault(place.name, []).append((place, path))
    found = {}
    for name, parts in sharing.items():
        parts.sort(key=lambda part: part[0].part or (0, 1))
        held = {codes[path] for _, path in parts}
        code = held.pop() if len(held) == 1 else "F32"  # one tensor has one dtype
        found[name] = Draft(code, parts[0][0].shapes[0], partial(_joined, parts, flat, code))
    return found


def _joined(parts: list[tuple[Place, tree.Path]], flat: Mapping[tree.Path, Any], code: str) -> np.ndarray:
    """A tensor's parameters, one below the other."""
    arrays = [
        np.asarray(flat[path]).astype(DTYPES[code], copy=False) if place.as_ours else in_file(path, flat[path], code)
        for place, path in parts
    ]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
