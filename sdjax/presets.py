"""The published checkpoints' configs, one table: what a file in the original layout does not say about itself.

Each preset holds the config.json of every network, the scheduler's config and the facts of model_index.json as the
authors published them in the diffusers layout (`source`), so that a single file opens without the Hub. Keys that
no network here reads are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """One family of checkpoints.

    Attributes:
      title: its name in messages. source: the repository whose files these are.
      pipeline: model_index.json's class.
      configs: config.json of each network: "unet", "vae", "text_encoder", "text_encoder_2" (those it has).
      scheduler: scheduler_config.json.
      pad_tokens: the text that pads a prompt, by tokenizer ("tokenizer", "tokenizer_2").
      index: what else model_index.json says.
    """

    title: str
    source: str
    pipeline: str
    configs: Mapping[str, Json]
    scheduler: Json
    pad_tokens: Mapping[str, str]
    index: Json = field(default_factory=dict)


EOS, PAD_0 = "<|endoftext|>", "!"  # Stable Diffusion 2 and OpenCLIP's bigG pad with id 0, which is "!"

_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "vocab_size": 49408,
}
_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_VIT_L = _TEXT | {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
# ViT-H has 24 layers; Stable Diffusion 2 takes the last but one, so its authors stored 23.
_VIT_H = _TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_VIT_BIG_G = _TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_VAE_SD = _VAE | {"sample_size": 512, "scaling_factor": 0.18215}
_VAE_XL = _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_SCHEDULER_XL = _SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_UNET_XL = _UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
_UNET_REFINER = _UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "sample_size": 128,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}

PRESETS: dict[str, Preset] = {
    "sd15": Preset(
        title="Stable Diffusion 1.x",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        configs={
            "unet": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
            "vae": _VAE_SD,
            "text_encoder": _VIT_L,
        },
        scheduler=_SCHEDULER | {"_class_name": "PNDMScheduler"},
        pad_tokens={"tokenizer": EOS},
    ),
    "sd21": Preset(
        title="Stable Diffusion 2.x at 768 pixels (v-prediction)",
        source="stabilityai/stable-diffusion-2-1",
        pipeline="StableDiffusionPipeline",
        configs={
            "unet": _UNET
            | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96}
            | {"upcast_attention": True, "use_linear_projection": True},
            "vae": _VAE | {"sample_size": 768, "scaling_factor": 0.18215},
            "text_encoder": _VIT_H,
        },
        scheduler=_SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        pad_tokens={"tokenizer": PAD_0},
    ),
    "sdxl": Preset(
        title="Stable Diffusion XL",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        configs={"unet": _UNET_XL, "vae": _VAE_XL, "text_encoder": _VIT_L, "text_encoder_2": _VIT_BIG_G},
        scheduler=_SCHEDULER_XL,
        pad_tokens={"tokenizer": EOS, "tokenizer_2": PAD_0},
        index={"force_zeros_for_empty_prompt": True},
    ),
    "sdxl_refiner": Preset(
        title="Stable Diffusion XL refiner",
        source="stabilityai/stable-diffusion-xl-refiner-1.0",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        configs={"unet": _UNET_REFINER, "vae": _VAE_XL, "text_encoder_2": _VIT_BIG_G},
        scheduler=_SCHEDULER_XL,
        pad_tokens={"tokenizer_2": PAD_0},
        index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
    ),
}
