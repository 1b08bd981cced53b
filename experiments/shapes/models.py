"""The sizes of the shapes model: its config.json files, in the diffusers layout, its tokenizer, what training is told.

A small Stable Diffusion: 128 x 128 pixels, 16 x 16 x 4 latents, 24 text tokens. The finest level of the U-Net has no
transformer: at 256 tokens attention would cost as much as everything else, and what the caption decides (which
colour, which shape, where) can be decided at 8 x 8.
"""

from typing import Any

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.diffusion.noise import Settings, noise_schedule
from sdjax.model.builtin import ASSETS, SHAPES
from sdjax.nn.shapes import expected_params
from sdjax.text.tokens import Tokenizer
from sdjax.train.architecture import Architecture, TextTower
from sdjax.weights import read_component

PIXELS = 128
MAX_LENGTH = 24  # the longest caption has 16 words
TEXT_WIDTH = 128

VAE_JSON: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": PIXELS,
    "scaling_factor": 1.0,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

UNET_JSON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 4,
    "block_out_channels": [64, 96, 160],
    "cross_attention_dim": TEXT_WIDTH,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 16,
    "out_channels": 4,
    "sample_size": PIXELS // 8,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}

PICTURE_UNETS: dict[str, dict[str, Any]] = {
    "inpainting": UNET_JSON | {"in_channels": 9},
    "depth": UNET_JSON | {"in_channels": 5, "block_out_channels": [40, 64, 80], "norm_num_groups": 8},
}
"""The U-Nets that see a picture beside the latents: mask and masked picture, or a depth map."""


def text_json(vocab_size: int) -> dict[str, Any]:
    """The text encoder's config.json for a tokenizer of `vocab_size` ids, BOS and EOS being the last two."""
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "hidden_act": "quick_gelu",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": MAX_LENGTH,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": vocab_size - 1,
        "projection_dim": TEXT_WIDTH,
        "vocab_size": vocab_size,
    }


SCHEDULER_JSON: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "solver_order": 2,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

VAE = VaeConfig.from_dict(VAE_JSON)
UNET = UNetConfig.from_dict(UNET_JSON)


def text_config(vocab_size: int) -> ClipTextConfig:
    """`text_json` as the config the encoder takes."""
    return ClipTextConfig.from_dict(text_json(vocab_size))


def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return Tokenizer.load(ASSETS / SHAPES / "tokenizer")


def architecture(unet: UNetConfig = UNET) -> Architecture:
    """What training is told of the model, or of another that shares everything but the U-Net with it."""
    betas = {name: SCHEDULER_JSON[name] for name in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    levels = tuple(map(float, noise_schedule(Settings(**betas)).alphas_cumprod))
    texts = (TextTower("text_encoder", text_config(tokenizer().size)),)
    return Architecture(unet, VAE, texts, levels, SCHEDULER_JSON["prediction_type"])


def shipped(name: str, config: ClipTextConfig | UNetConfig | VaeConfig) -> dict:
    """The parameters of a component of the shipped model, float16."""
    return read_component(ASSETS / SHAPES / name, expected_params({name: config})[name])[0]
