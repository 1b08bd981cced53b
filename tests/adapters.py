"""Small LoRA files, their tensors named by hand, and the trees that they are for."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sdjax.adapters.paths import published as published
from sdjax.adapters.slots import in_transformer
from sdjax.core import tree

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # SGM's: SGM_SITE
SGM_SITE = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
LAYER = "text_model.encoder.layers.0.self_attn.q_proj"


def factors(outputs: int, inputs: int, rank: int = 4, seed: int = 0, dtype: Any = np.float16) -> list[np.ndarray]:
    """Down and up of one module."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((rank, inputs), (outputs, rank))]


def kohya(modules: dict[str, tuple[int, int]], rank: int = 4, alpha: float | None = 2.0) -> dict[str, np.ndarray]:
    """A LoRA by kohya's names, of modules (without a suffix) with their outputs and inputs."""
    tensors = {}
    for seed, (name, (outputs, inputs)) in enumerate(modules.items()):
        down, up = factors(outputs, inputs, rank, seed)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float16)
    return tensors


SMALL = {
    f"lora_unet_{SITE.replace('.', '_')}": (320, 768),
    f"lora_te_{LAYER.replace('.', '_')}": (768, 768),
}


def written(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    """A .safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata)
    return path


def whole_lora(params: dict[str, Any], rank: int, seed: int = 0, convolutions: bool = False) -> dict[str, np.ndarray]:
    """A LoRA by kohya's names of every linear layer of a model's transformers, and of its convolutions if asked for.

    Its differences are about a third of a kernel drawn as `lecun_normal`.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    parts = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if "text_encoder_2" in params:
        parts["text_encoder"] = "lora_te1"
    for part, prefix in parts.items():
        for path, leaf in tree.flatten(params.get(part, {})).items():
            module = ".".join(path[:-1])
            if path[-1] != "kernel" or not (convolutions and part == "unet" or in_transformer(module)):
                continue
            *size, inputs, outputs = leaf.shape
            down = rng.standard_normal((rank, inputs, *size)) / np.sqrt(9 * inputs * max(1, len(size) * 4))
            up = rng.standard_normal((outputs, rank, *[1] * len(size))) / np.sqrt(rank)
            name = f"{prefix}_{module.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down.astype("f"), up.astype("f")
            tensors[f"{name}.alpha"] = np.array(rank, "f")
    return tensors


def golden_lora(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """That of `golden/make_adapters.py`, for these parameters of a U-Net."""
    tensors = whole_lora(params, 4, 0, convolutions=True)
    return {name: array for name, array in tensors.items() if "embedding" not in name}
