"""Small IP-Adapters of random weights, written as their authors write them, each with an image encoder beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.image_prompt_names import ATTENTION, PROJECTION, places
from sdjax.config import ClipVisionConfig
from sdjax.config.image_prompt import BASE, FULL, PLUS, ImagePromptConfig, ResamplerConfig
from sdjax.core import tree
from sdjax.core.tree import modules_named
from sdjax.nn.image_prompt import attention_paths, projection_shapes
from sdjax.nn.shapes import expected_params
from sdjax.weights import names
from tests.adapters import written
from tests.checkpoints import random_params

KINDS = (BASE, PLUS, FULL)
ENCODER: dict[str, Any] = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 24,
    "image_size": 32,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 20,
}
RESAMPLER = ResamplerConfig(width=32, depth=4, heads=2, hidden=128)  # depth and hidden as diffusers has them always


def config_of(kind: str, width: int, encoder: Mapping[str, Any] = ENCODER) -> ImagePromptConfig:
    """For a U-Net whose text is so wide; base makes 4 tokens, plus 6."""
    if kind == BASE:
        return ImagePromptConfig(BASE, encoder["projection_dim"], width, 4)
    plus = kind == PLUS
    return ImagePromptConfig(kind, encoder["hidden_size"], width, 6 if plus else None, RESAMPLER if plus else None)


def image_prompt_tensors(
    unet: Mapping[str, Any], kind: str = BASE, *, diffusers: bool = False, seed: int = 0, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """The tensors of an IP-Adapter for the U-Net of these parameters (or shapes), by their authors' names.

    diffusers: the projection by diffusers' names.
    """
    there = dict(modules_named(unet, ("attn2",)))
    kernels = [there[path]["to_k"]["kernel"].shape for path in attention_paths(unet)]
    config = config_of(kind, kernels[0][0])
    tensors: dict[str, np.ndarray] = {}
    where = places(kind)
    for path, leaf in tree.flatten(random_params(projection_shapes(config), dtype, seed)).items():
        place = where((PROJECTION, *path), leaf.shape)[-1 if diffusers else 0]
        stored = np.ascontiguousarray(names.to_file(path, leaf))
        before = [tensors[place.name]] if place.name in tensors else []  # keys, then values
        tensors[place.name] = np.concatenate([*before, stored])
    rng = np.random.default_rng(seed + 1)
    for number, (inputs, outputs) in enumerate(kernels):
        for layer in ("to_k_ip", "to_v_ip"):
            drawn = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
            tensors[f"{ATTENTION}.{2 * number + 1}.{layer}.weight"] = drawn.astype(dtype)
    return tensors


def write_image_encoder(
    folder: Path, config: Mapping[str, Any] = ENCODER, seed: int = 0, dtype: DTypeLike = np.float32
) -> Path:
    """An image encoder in the new `folder`, as transformers saves a CLIPVisionModelWithProjection."""
    shapes = expected_params({"encoder": ClipVisionConfig.from_dict(config)})["encoder"]
    params = tree.flatten(random_params(shapes, dtype, seed))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    written(
        folder / "model.safetensors",
        {names.tensor_name(path): names.to_file(path, one) for path, one in params.items()},
    )
    return folder


def write_image_prompt(
    folder: Path, unet: Mapping[str, Any], kind: str = BASE, *, name: str = "ip-adapter", **how: Any
) -> Path:
    """`folder/<name>.safetensors` and, unless it is there, `folder/image_encoder`; the path of the former.

    unet: the parameters of the U-Net that it is for, or their shapes. how: as `image_prompt_tensors` takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "image_encoder").exists():
        write_image_encoder(folder / "image_encoder")
    return written(folder / f"{name}.safetensors", image_prompt_tensors(unet, kind, **how))
