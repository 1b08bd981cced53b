"""Tiny checkpoints in the diffusers layout, made without torch: random weights, a vocabulary of 12 words.

A Stable Diffusion 1.x in small: convolutional projections, epsilon prediction, 16 x 16 pixels, VAE factor 2.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

import sdjax
from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.model.networks import Networks
from sdjax.nn.shapes import expected_params
from sdjax.runtime import programs
from sdjax.text import write_word_tokenizer
from sdjax.weights import default_layout, save_folder

# The programs that every picture from text goes through until it is latents.
TO_LATENTS = (
    programs.encode_text,
    programs.precompute_kv,
    programs.noise,
    programs.begin,
    programs.draw,
    programs.run_rows,
)
PIXELS, FACTOR, MAX_LENGTH, WIDTH = 16, 2, 12, 16
WORDS = ("a", "an", "red", "green", "blue", "circle", "square", "above", "below", "on", "large", "small")

TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": MAX_LENGTH,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": PIXELS // FACTOR,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": PIXELS,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", SCHEDULER["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_checkpoint(
    folder: Path,
    *,
    dtype: DTypeLike = np.float16,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint into the new `folder` and returns it.

    The dicts go over the config of their name; weights are random from `seed`, stored in `dtype`.
    """
    files = tokenizer_files()
    size = len(json.loads(files["tokenizer/vocab.json"]))
    ids = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    configs = {
        "text_encoder": TEXT | ids | (text or {}),
        "unet": UNET | (unet or {}),
        "vae": VAE | (vae or {}),
    }
    shapes = expected_params(
        {
            "text_encoder": ClipTextConfig.from_dict(configs["text_encoder"]),
            "unet": UNetConfig.from_dict(configs["unet"]),
            "vae": VaeConfig.from_dict(configs["vae"]),
        }
    )
    params = {name: random_params(shapes[name], dtype, seed) for name in configs}
    components = {name: (params[name], default_layout(params[name], configs[name])) for name in configs}
    files["scheduler/scheduler_config.json"] = json.dumps(SCHEDULER | (scheduler or {}), indent=2).encode()
    files["model_index.json"] = json.dumps(INDEX, indent=2).encode()
    save_folder(folder, components, files)
    return folder


def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer in which each of WORDS is one token, by path from a checkpoint's root."""
    with tempfile.TemporaryDirectory() as folder:
        write_word_tokenizer(folder, WORDS, MAX_LENGTH)
        return {f"tokenizer/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}


def random_params(shapes: Any, dtype: DTypeLike, seed: int) -> Any:
    """Arrays for a tree of `jax.ShapeDtypeStruct`, each layer keeping about the variance of its input."""
    rng = np.random.default_rng(seed)

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn = rng.standard_normal(leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            drawn /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif kind == "scale":
            drawn = 1 + 0.1 * drawn
        elif kind == "bias":
            drawn *= 0.1
        return drawn.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def respecified(sd: sdjax.StableDiffusion, dtype: DTypeLike | None = None, **changes: Any) -> sdjax.StableDiffusion:
    """The model with other fields of its spec, or computing in another dtype."""
    networks = sd.networks
    spec = dataclasses.replace(networks.spec, **changes)
    made = Networks.of(spec, networks.stored, networks.dtype if dtype is None else dtype, networks.executor)
    return dataclasses.replace(sd, networks=made)
