"""Small random checkpoints of every family, built from diffusers' and transformers' own classes, and what they make.

Each has its family's real block structure with few channels: SDXL base three levels of which the first has no
attention, its refiner four, two text encoders of unlike width and padding, the published scheduler's config, and so
on. Norms are moved off 1 and 0, so that a dropped one shows.
"""

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers
from PIL import Image

import sdjax
from sdjax.text import write_word_tokenizer
from tests.parity import test_clip_vision, test_depth

WORDS = ["a", "an", "red", "blue", "green", "circle", "square", "ring", "above", "below"]
LENGTH = 12  # tokens in a row
SIZE = 16  # native latents
FACTOR = 2  # of the VAE
SEEN = test_depth.SMALL["image_size"]  # pixels that the depth estimator sees
STEPS = 6

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
NARROW, WIDE, POOLED = 16, 24, 20  # hidden sizes of the text encoders, and of the second's projection
IDS = 8  # features of each of SDXL's numbers

XL_UNET: dict[str, Any] = dict(
    block_out_channels=(8, 16, 24),
    down_block_types=(PLAIN, CROSS, CROSS),
    up_block_types=(UP_CROSS, UP_CROSS, UP_PLAIN),
    attention_head_dim=(1, 2, 3),
    transformer_layers_per_block=(1, 1, 2),
    layers_per_block=1,
    cross_attention_dim=NARROW + WIDE,
    projection_class_embeddings_input_dim=POOLED + 6 * IDS,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=IDS,
)
SD_UNET: dict[str, Any] = dict(
    block_out_channels=(8, 16),
    down_block_types=(CROSS, PLAIN),
    up_block_types=(UP_PLAIN, UP_CROSS),
    attention_head_dim=4,
    layers_per_block=1,
    cross_attention_dim=NARROW,
)
UNETS: dict[str, dict[str, Any]] = {
    "sd1": SD_UNET,
    "sd2": SD_UNET
    | dict(attention_head_dim=(1, 2), use_linear_projection=True, upcast_attention=True, cross_attention_dim=WIDE),
    # Distilled twice: told the guidance scale, and with no middle at all, as the smallest of SD 1.x are.
    "lcm": SD_UNET | dict(time_cond_proj_dim=12, mid_block_type=None),
    "sdxl": XL_UNET,
    "refiner": XL_UNET
    | dict(
        block_out_channels=(8, 16, 24, 24),
        down_block_types=(PLAIN, CROSS, CROSS, PLAIN),
        up_block_types=(UP_PLAIN, UP_CROSS, UP_CROSS, UP_PLAIN),
        attention_head_dim=(1, 2, 3, 3),
        transformer_layers_per_block=1,
        cross_attention_dim=WIDE,
        projection_class_embeddings_input_dim=POOLED + 5 * IDS,
    ),
    # Each attention with a number of layers of its own, the middle a lone resnet, as segmind/SSD-1B.
    "ssd": XL_UNET
    | dict(
        mid_block_type="UNetMidBlock2D",
        layers_per_block=(1, 2, 1),
        transformer_layers_per_block=[1, [2, 1], [1]],
        reverse_transformer_layers_per_block=[[1, 2], [1, 2, 1], 1],
    ),
}
UNETS |= {"turbo": XL_UNET, "sdxl_v": XL_UNET}
# Models that see a picture beside the latents: mask and masked picture, the picture to change, a depth map, a small
# picture. The last is told how noisy that is, and its outer levels look at the text alone, as the x4 upscaler's.
UNETS |= {
    "inpainting": SD_UNET | dict(in_channels=9),
    "inpainting_xl": XL_UNET | dict(in_channels=9),
    "pix2pix": SD_UNET | dict(in_channels=8),
    "pix2pix_xl": XL_UNET | dict(in_channels=8),
    "depth": UNETS["sd2"] | dict(in_channels=5),
    "variation": SD_UNET | dict(cross_attention_dim=test_clip_vision.SMALL["projection_dim"]),
    "upscaler": UNETS["sd2"]
    | dict(
        in_channels=7,
        num_class_embeds=1000,
        down_block_types=(PLAIN, CROSS, CROSS),
        up_block_types=(UP_CROSS, UP_CROSS, UP_PLAIN),
        block_out_channels=(8, 16, 24),
        attention_head_dim=4,
        only_cross_attention=(True, True, False),
        upcast_attention=False,
    ),
}

_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
_SD = _BETAS | dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
_XL = _SD | dict(timestep_spacing="leading", prediction_type="epsilon", use_karras_sigmas=False)
_ZERO_SNR = dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "sd1": (diffusers.PNDMScheduler, _SD),
    "sd2": (diffusers.DDIMScheduler, _SD | dict(prediction_type="v_prediction")),
    "lcm": (diffusers.LCMScheduler, _SD),
    "turbo": (diffusers.EulerAncestralDiscreteScheduler, _XL | dict(timestep_spacing="trailing")),
    "sdxl_v": (diffusers.EulerDiscreteScheduler, _XL | _ZERO_SNR),
    **dict.fromkeys(("sdxl", "refiner", "ssd", "inpainting_xl", "pix2pix_xl"), (diffusers.EulerDiscreteScheduler, _XL)),
    "inpainting": (diffusers.DDIMScheduler, _SD),
    "pix2pix": (diffusers.EulerAncestralDiscreteScheduler, _SD),
    **dict.fromkeys(("depth", "variation"), (diffusers.PNDMScheduler, _SD)),
    "upscaler": (
        diffusers.DDIMScheduler,
        _SD | dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction"),
    ),
}
LOW_RES = dict(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")  # the x4 upscaler's own

# Our samplers' names and diffusers' classes, and what makes a class the sampler.
SAMPLERS: dict[str, type] = {
    "pndm": diffusers.PNDMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
}
MEANS: dict[str, dict[str, Any]] = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
# Our arguments and diffusers'.
NAMES = {
    "steps": "num_inference_steps",
    "num_images": "num_images_per_prompt",
    "crop": "crops_coords_top_left",
    "negative_crop": "negative_crops_coords_top_left",
    "mask": "mask_image",
    "mask_crop": "padding_mask_crop",
    "depth": "depth_map",
}


def build(kind: str, seed: int = 0) -> diffusers.DiffusionPipeline:
    """The family's pipeline, float32."""
    torch.manual_seed(seed)
    scheduler, config = SCHEDULERS[kind]
    parts = dict(
        unet=diffusers.UNet2DConditionModel(sample_size=SIZE, norm_num_groups=4, **UNETS[kind]),
        vae=_vae(0.13025 if UNETS[kind].get("addition_embed_type") else 0.18215),
        scheduler=scheduler.from_config(config),
    )
    if kind == "upscaler":
        parts |= dict(vae=_vae(0.08333, levels=3), low_res_scheduler=diffusers.DDPMScheduler.from_config(LOW_RES))
    parts |= _text(kind)
    for module in parts.values():
        if isinstance(module, torch.nn.Module):
            _move_norms(module.eval())
    if "addition_embed_type" in UNETS[kind]:  # so that the sizes are heard in so few channels
        parts["unet"].add_embedding.linear_1.weight.data *= 4
    pipeline = _PIPELINES.get(kind, _sdxl)(parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae(scaling_factor: float, levels: int = 2) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
    )


def _text(kind: str) -> dict[str, Any]:
    """Text encoders and tokenizers: ViT-L's kind pads with EOS, the OpenCLIP ones with "!", which is id 0."""
    if kind == "variation":
        return {}
    end, zero = _tokenizer("<|endoftext|>"), _tokenizer("!")
    if UNETS[kind]["cross_attention_dim"] == WIDE and kind != "refiner":  # SD 2
        return dict(tokenizer=zero, text_encoder=_clip(transformers.CLIPTextModel, zero, WIDE, "gelu"))
    first = dict(tokenizer=end, text_encoder=_clip(transformers.CLIPTextModel, end, NARROW, "quick_gelu"))
    if "addition_embed_type" not in UNETS[kind]:
        return first
    second = _clip(transformers.CLIPTextModelWithProjection, zero, WIDE, "gelu")
    if kind == "refiner":
        first = dict(tokenizer=None, text_encoder=None)
    return first | dict(tokenizer_2=zero, text_encoder_2=second)


def _tokenizer(pad: str) -> transformers.CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_word_tokenizer(folder, WORDS, LENGTH)
        for name in ("special_tokens_map", "tokenizer_config"):
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": pad}))
        return transformers.CLIPTokenizer.from_pretrained(folder)


def _clip(kind: type, tokenizer: transformers.CLIPTokenizer, width: int, act: str) -> torch.nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=POOLED,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,  # as published, and wrong: the pooled state then lies at the largest id
        pad_token_id=1,
    )
    return kind(config)


def _move_norms(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)


_UNCHECKED = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _sd(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionPipeline(**parts, **_UNCHECKED)


def _lcm(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.LatentConsistencyModelPipeline(**parts, **_UNCHECKED)


def _sdxl(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)


def _refiner(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
    )


def _inpainting(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionInpaintPipeline(**parts, **_UNCHECKED)


def _inpainting_xl(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)


def _pix2pix(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionInstructPix2PixPipeline(**parts, **_UNCHECKED)


def _pix2pix_xl(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionXLInstructPix2PixPipeline(**parts, add_watermarker=False)


def _depth(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    processor = transformers.DPTImageProcessor(
        size={"height": SEEN, "width": SEEN},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=Image.Resampling.BICUBIC,
    )
    estimator = test_depth.build(test_depth.SMALL)
    return diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=estimator, feature_extractor=processor)


def _variation(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    seen = test_clip_vision.SMALL["image_size"]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": seen}, crop_size={"height": seen, "width": seen}, resample=Image.Resampling.BICUBIC
    )
    encoder = test_clip_vision.build(test_clip_vision.SMALL)
    return diffusers.StableDiffusionImageVariationPipeline(
        **parts, image_encoder=encoder, **_UNCHECKED | dict(feature_extractor=processor)
    )


def _upscaler(parts: dict[str, Any]) -> diffusers.DiffusionPipeline:
    return diffusers.StableDiffusionUpscalePipeline(**parts)


_PIPELINES: dict[str, Callable[[dict[str, Any]], diffusers.DiffusionPipeline]] = {
    "sd1": _sd,
    "sd2": _sd,
    "lcm": _lcm,
    "refiner": _refiner,
    "inpainting": _inpainting,
    "inpainting_xl": _inpainting_xl,
    "pix2pix": _pix2pix,
    "pix2pix_xl": _pix2pix_xl,
    "depth": _depth,
    "variation": _variation,
    "upscaler": _upscaler,
}


@functools.cache
def opened(kind: str) -> tuple[diffusers.DiffusionPipeline, sdjax.StableDiffusion]:
    """The family's pipeline, and the same checkpoint loaded here from what diffusers saved."""
    pipeline = build(kind)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        return pipeline, sdjax.load(folder, compilation_cache=False)


@contextlib.contextmanager
def quick_compiles() -> Iterator[None]:
    """XLA compiles in half the time: these networks are compiled for more seconds than they run."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def noise(count: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> np.ndarray:
    """Unit Gaussian latents `b h w c`, float32."""
    return np.random.default_rng(seed).standard_normal((count, height, width, 4)).astype(np.float32)


def channels_first(array: np.ndarray) -> torch.Tensor:
    """`b h w c` -> `b c h w`."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """`b c h w` -> `b h w c`."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def run(
    pipeline: diffusers.DiffusionPipeline,
    sampler: str | None = None,
    changed: dict[str, Any] | None = None,
    **asked: Any,
) -> torch.Tensor:
    """What the pipeline makes: final latents `b c h w` at its scheduler's own scale, of our arguments.

    sampler: as we name it, made from the pipeline's own scheduler's config; None is the pipeline's own.
    changed: keys of that config to be other than they are.
    """
    own = pipeline.scheduler
    # From the file's text and not from the live config, which remembers what was a default and drops it again.
    config = json.loads(own.to_json_string())
    config |= MEANS.get(str(sampler), {}) | (changed or {})
    pipeline.scheduler = (type(own) if sampler is None else SAMPLERS[sampler]).from_config(config)
    given = {NAMES.get(name, name): value for name, value in asked.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other longer than these networks take, on a busy machine
    try:
        return pipeline(**{"num_inference_steps": STEPS, "output_type": "latent", **given}).images
    finally:
        pipeline.ran, pipeline.scheduler = pipeline.scheduler, own
        torch.set_num_threads(threads)


def one_by_one(pipeline: diffusers.DiffusionPipeline, latents: np.ndarray, **asked: Any) -> np.ndarray:
    """`run` for each picture alone, where lists have one entry for each; `b h w c`."""
    made = []
    for i in range(len(latents)):
        own = {name: value[i] if isinstance(value, list) else value for name, value in asked.items()}
        made.append(run(pipeline, latents=channels_first(latents[i : i + 1]), **own))
    return channels_last(torch.cat(made))


def relative(ours: object, theirs: np.ndarray) -> float:
    """Largest difference over the reference's largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
