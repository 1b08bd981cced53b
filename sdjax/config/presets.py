"""The published checkpoints' configs, one table: what a file in the original layout does not say about itself.

Each preset holds the config.json of every network, the scheduler's config and the facts of model_index.json as the
authors published them in the diffusers layout (`source`), so that a single file opens without the Hub. Keys that
no network here reads are left out.

`PRESETS` are the families that a file's tensors tell apart (two of Stable Diffusion 2 by what they predict), `ALIKE`
those with the very tensors of a family before them, which only a name can tell.

Checked against copies of the config.json files in public repositories (Forge's backend/huggingface, BK-SDM's
src/unet_config*, mirrors of the Hub), against the authors' own .yaml files (generative-models, x4 upscaler,
InstructPix2Pix) and, for Segmind's and KOALA's blocks, against ComfyUI's comfy/model_detection.py; the tensors that
follow are held to diffusers' and to the published files' sizes (tests/test_presets.py). Not seen but inferred: all of
SD-Turbo, and of Stable Diffusion 2 depth all but its 5 channels; the schedulers of both InstructPix2Pix, of the
distilled and of the LCMs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.text.vocabulary import EOS

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


PAD_0 = "!"  # id 0, with which Stable Diffusion 2 and OpenCLIP's bigG pad

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
# Where a config has no scaling_factor and no force_upcast, diffusers' defaults are 0.18215 and True.
_VAE_SD = _VAE | {"sample_size": 512, "scaling_factor": 0.18215}
_VAE_XL = _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_VAE_X4 = _VAE | {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "sample_size": 256,
    "scaling_factor": 0.08333,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}

_PNDM = _SCHEDULER | {"_class_name": "PNDMScheduler"}
_DDIM = _SCHEDULER | {"_class_name": "DDIMScheduler"}
_EULER = _SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_EULER_ANCESTRAL = _SCHEDULER | {"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "epsilon"}
_TRAILING = {"timestep_spacing": "trailing"}  # few-step models start from the noisiest timestep
_LCM = _SCHEDULER | {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}

_UNET_1 = _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}
_UNET_2 = _UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "sample_size": 64,
    "use_linear_projection": True,
}
_UNET_X4 = _UNET | {
    "attention_head_dim": 8,
    "block_out_channels": [256, 512, 512, 1024],
    "cross_attention_dim": 1024,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "in_channels": 7,  # the noisy latents and the small picture
    "num_class_embeds": 1000,  # how much noise the small picture was given
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
    "use_linear_projection": True,
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
# Distilled: layers left out of the originals.
_UNET_BK_TINY = _UNET_1 | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}
_UNET_SSD = _UNET_XL | {
    "mid_block_type": "UNetMidBlock2D",
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
}
_UNET_VEGA = _UNET_XL | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]}
_UNET_KOALA = _UNET_XL | {"layers_per_block": 1, "mid_block_type": None, "transformer_layers_per_block": [1, 2, 5]}
_KNOWS_SCALE = {"time_cond_proj_dim": 256}  # latent consistency models are told the guidance scale


def _sd1(title: str, source: str, pipeline: str, scheduler: Json, unet: Json) -> Preset:
    """A family with the text encoder and the VAE of Stable Diffusion 1; `unet` is what its U-Net has otherwise."""
    configs = {"unet": _UNET_1 | dict(unet), "vae": _VAE_SD, "text_encoder": _VIT_L}
    return Preset(title, source, pipeline, configs, scheduler, {"tokenizer": EOS})


def _sd2(title: str, source: str, pipeline: str, scheduler: Json, unet: Json) -> Preset:
    """Likewise of Stable Diffusion 2."""
    configs = {"unet": _UNET_2 | dict(unet), "vae": _VAE_SD, "text_encoder": _VIT_H}
    return Preset(title, source, pipeline, configs, scheduler, {"tokenizer": PAD_0})


def _sdxl(title: str, source: str, unet: Json, scheduler: Json = _EULER, pipeline: str = "") -> Preset:
    """Likewise of Stable Diffusion XL."""
    configs = {"unet": _UNET_XL | dict(unet), "vae": _VAE_XL, "text_encoder": _VIT_L, "text_encoder_2": _VIT_BIG_G}
    pads, index = {"tokenizer": EOS, "tokenizer_2": PAD_0}, {"force_zeros_for_empty_prompt": True}
    return Preset(title, source, f"StableDiffusionXL{pipeline}Pipeline", configs, scheduler, pads, index)


# The order matters: of two whose tensors are the same, a single file is taken for the first.
PRESETS: dict[str, Preset] = {
    "sd15": _sd1(
        "Stable Diffusion 1.x",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        _PNDM,
        {},
    ),
    "sd15_inpaint": _sd1(
        "Stable Diffusion 1.x inpainting",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "StableDiffusionInpaintPipeline",
        _DDIM,
        {"in_channels": 9},
    ),
    "sd15_pix2pix": _sd1(
        "InstructPix2Pix",
        "timbrooks/instruct-pix2pix",
        "StableDiffusionInstructPix2PixPipeline",
        _EULER_ANCESTRAL,
        {"in_channels": 8},
    ),
    # 2.0's (stabilityai/stable-diffusion-2-base and -2) have the same but for 2.1's upcast_attention at 768.
    "sd21_base": _sd2(
        "Stable Diffusion 2.x at 512 pixels",
        "stabilityai/stable-diffusion-2-1-base",
        "StableDiffusionPipeline",
        _PNDM | {"prediction_type": "epsilon"},
        {},
    ),
    "sd21": _sd2(
        "Stable Diffusion 2.x at 768 pixels (v-prediction)",
        "stabilityai/stable-diffusion-2-1",
        "StableDiffusionPipeline",
        _DDIM | {"prediction_type": "v_prediction"},
        {"sample_size": 96, "upcast_attention": True},
    ),
    "sd2_inpaint": _sd2(
        "Stable Diffusion 2 inpainting",
        "stabilityai/stable-diffusion-2-inpainting",
        "StableDiffusionInpaintPipeline",
        _PNDM,
        {"in_channels": 9},
    ),
    "sd2_depth": _sd2(
        "Stable Diffusion 2 depth",
        "stabilityai/stable-diffusion-2-depth",
        "StableDiffusionDepth2ImgPipeline",
        _PNDM,
        {"in_channels": 5},
    ),
    "sd2_x4_upscaler": Preset(
        title="Stable Diffusion 2 x4 upscaler",
        source="stabilityai/stable-diffusion-x4-upscaler",
        pipeline="StableDiffusionUpscalePipeline",
        configs={"unet": _UNET_X4, "vae": _VAE_X4, "text_encoder": _VIT_H},
        scheduler=_DDIM | {"beta_end": 0.02, "beta_start": 0.0001, "prediction_type": "v_prediction"},
        pad_tokens={"tokenizer": PAD_0},
        index={"max_noise_level": 350},
    ),
    "sdxl": _sdxl("Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", {}),
    # Published with a VAE that does not overflow (force_upcast false); a single file may hold either.
    "sdxl_inpaint": _sdxl(
        "Stable Diffusion XL inpainting",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        {"in_channels": 9},
        pipeline="Inpaint",
    ),
    "sdxl_pix2pix": _sdxl(
        "Stable Diffusion XL InstructPix2Pix",
        "diffusers/sdxl-instructpix2pix-768",
        {"in_channels": 8, "sample_size": 96},
        pipeline="InstructPix2Pix",
    ),
    "sdxl_refiner": Preset(
        title="Stable Diffusion XL refiner",
        source="stabilityai/stable-diffusion-xl-refiner-1.0",
        pipeline="StableDiffusionXLImg2ImgPipeline",
        configs={"unet": _UNET_REFINER, "vae": _VAE_XL, "text_encoder_2": _VIT_BIG_G},
        scheduler=_EULER,
        pad_tokens={"tokenizer_2": PAD_0},
        index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
    ),
    "bk_sdm_base": _sd1(
        "BK-SDM-Base (Segmind small-sd)",
        "nota-ai/bk-sdm-base",
        "StableDiffusionPipeline",
        _PNDM,
        {"layers_per_block": 1},
    ),
    "bk_sdm_small": _sd1(
        "BK-SDM-Small",
        "nota-ai/bk-sdm-small",
        "StableDiffusionPipeline",
        _PNDM,
        {"layers_per_block": 1, "mid_block_type": None},
    ),
    "bk_sdm_tiny": _sd1(
        "BK-SDM-Tiny (Segmind tiny-sd)", "nota-ai/bk-sdm-tiny", "StableDiffusionPipeline", _PNDM, _UNET_BK_TINY
    ),
    "ssd_1b": _sdxl("Segmind SSD-1B", "segmind/SSD-1B", _UNET_SSD),
    "vega": _sdxl("Segmind Vega", "segmind/Segmind-Vega", _UNET_VEGA),
    "koala_700m": _sdxl("KOALA-700M", "etri-vilab/koala-700m", _UNET_KOALA),
    "koala_1b": _sdxl(
        "KOALA-1B",
        "etri-vilab/koala-1b",
        _UNET_KOALA | {"mid_block_type": "UNetMidBlock2DCrossAttn", "transformer_layers_per_block": [1, 2, 6]},
    ),
}

# Guidance-distilled U-Nets have one tensor more than the family they come from; the others differ in how they are run.
ALIKE: dict[str, Preset] = {
    "lcm_sd15": _sd1(
        "LCM of Stable Diffusion 1.x", "SimianLuo/LCM_Dreamshaper_v7", "StableDiffusionPipeline", _LCM, _KNOWS_SCALE
    ),
    "lcm_sdxl": _sdxl(
        "LCM of Stable Diffusion XL",
        "latent-consistency/lcm-sdxl",
        _KNOWS_SCALE,
        _LCM | {"set_alpha_to_one": False, "steps_offset": 1},
    ),
    "lcm_ssd_1b": _sdxl(
        "LCM of SSD-1B",
        "latent-consistency/lcm-ssd-1b",
        _UNET_SSD | _KNOWS_SCALE,
        _LCM | {"set_alpha_to_one": False, "steps_offset": 1},
    ),
    "sd_turbo": _sd2("SD-Turbo", "stabilityai/sd-turbo", "StableDiffusionPipeline", _EULER | _TRAILING, {}),
    "sdxl_turbo": _sdxl(
        "SDXL-Turbo",
        "stabilityai/sdxl-turbo",
        {"sample_size": 64},
        _EULER_ANCESTRAL | {"interpolation_type": "linear", "sample_max_value": 1.0} | _TRAILING,
    ),
    "sdxl_lightning": _sdxl("SDXL-Lightning", "ByteDance/SDXL-Lightning", {}, _EULER | _TRAILING),
}
