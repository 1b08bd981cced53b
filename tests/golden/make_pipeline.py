"""Makes tests/golden/{sd1,sd2}: tiny checkpoints saved by diffusers, and what diffusers makes of them.

    python -m tests.golden.make_pipeline            (torch 2.13.0, diffusers 0.42.1, transformers 5.23)

Each folder is a checkpoint in the diffusers layout with random weights, plus expected.npz: hidden states, one U-Net
evaluation, VAE encoding and decoding, and the 20-step guided latents of every sampler. Arrays are channels-last.
"""

import json
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

from sdjax.text import write_word_tokenizer
from tests.golden_pipeline import NEGATIVES, PROMPTS

HERE = Path(__file__).parent
SAMPLERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}

STEPS, GUIDANCE = 20, 7.5
WORDS = ["a", "an", "red", "blue", "circle", "square", "ring", "above"]
MAX_LENGTH = 12

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
UNET = {
    "sd1": dict(attention_head_dim=4, down_block_types=(CROSS, PLAIN), up_block_types=(UP_PLAIN, UP_CROSS)),
    "sd2": dict(
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        upcast_attention=True,
        down_block_types=(PLAIN, CROSS),
        up_block_types=(UP_CROSS, UP_PLAIN),
    ),
}
TEXT = {"sd1": dict(hidden_act="quick_gelu"), "sd2": dict(hidden_act="gelu")}
SCHEDULER = {
    "sd1": dict(prediction_type="epsilon"),
    "sd2": dict(prediction_type="v_prediction"),
}


def build(kind: str, seed: int) -> diffusers.StableDiffusionPipeline:
    """A tiny random pipeline of the family, float32; norms are moved off 1 and 0, so that a dropped one shows."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        write_word_tokenizer(folder, WORDS, MAX_LENGTH)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        **TEXT[kind],
    )
    encoder = transformers.CLIPTextModel(text)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        **UNET[kind],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    for module in (encoder, unet, vae):
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    config = dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    scheduler = diffusers.PNDMScheduler.from_config(config | betas | SCHEDULER[kind])
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """`b c h w` -> `b h w c` as NumPy."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def starting_noise(seed: int) -> np.ndarray:
    """Unit Gaussian `b h w c` for PROMPTS, float32."""
    return np.random.default_rng(seed).standard_normal((len(PROMPTS), 8, 8, 4)).astype(np.float32)


@torch.no_grad()
def reference(pipeline: diffusers.StableDiffusionPipeline, seed: int) -> dict[str, np.ndarray]:
    """What diffusers gives, part by part and for whole runs; arrays channels-last."""
    rng = np.random.default_rng(seed + 1)
    noise = starting_noise(seed)
    pixels = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    x, t = rng.standard_normal((2, 6, 10, 4)).astype(np.float32), np.array([981.0, 20.25], np.float32)
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = pipeline.text_encoder(ids)[0]
    nchw = [torch.from_numpy(a.transpose(0, 3, 1, 2)) for a in (x, pixels)]
    latents = pipeline.vae.encode(nchw[1]).latent_dist.mean
    out = {
        "ids": ids.numpy().astype(np.int32),
        "context": context.numpy(),
        "x": x,
        "t": t,
        "prediction": channels_last(pipeline.unet(nchw[0], torch.from_numpy(t), context).sample),
        "pixels": pixels,
        "encoded": channels_last(latents) * pipeline.vae.config.scaling_factor,
        "decoded": channels_last(pipeline.vae.decode(latents).sample),
    }
    # From the file's text and not from the live config, which remembers what was a default and drops it again.
    config = json.loads(pipeline.scheduler.to_json_string())
    for name, scheduler in SAMPLERS.items():
        pipeline.scheduler = scheduler.from_config(config)
        final = pipeline(
            PROMPTS,
            negative_prompt=NEGATIVES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)),
            output_type="latent",
        ).images
        out[name] = channels_last(final)
    return out


if __name__ == "__main__":
    for kind in UNET:
        made = build(kind, 0)
        made.save_pretrained(HERE / kind, safe_serialization=True)
        np.savez_compressed(HERE / kind / "expected.npz", **reference(made, 0))
