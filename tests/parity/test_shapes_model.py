"""The shipped model in diffusers: it loads unchanged and gives the same latents and the same pictures."""

from pathlib import Path

import diffusers
import numpy as np
import torch

import sdjax
from tests.golden.make_pipeline import SAMPLERS, channels_last

ASSETS = Path(sdjax.__file__).parent / "assets" / "shapes"
PROMPTS = ["a large red circle on a white background", "a small yellow star above a purple heart"]


def test_same_pictures_as_diffusers():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(ASSETS, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sd = sdjax.load(compilation_cache=False)
    noise = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
    for name, scheduler in SAMPLERS.items():
        pipeline.scheduler = scheduler.from_config(dict(sd.scheduler))
        theirs = pipeline(
            PROMPTS,
            num_inference_steps=20,
            guidance_scale=3.0,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)),
            output_type="latent",
        ).images
        ours = sd.generate(PROMPTS, steps=20, sampler=name, guidance_scale=3.0, latents=noise)
        want = channels_last(theirs)
        assert np.abs(ours.latents - want).max() <= 1e-3 * np.abs(want).max(), name
        with torch.no_grad():
            pixels = channels_last(pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample)
        levels = np.rint((pixels.clip(-1, 1) + 1) * 127.5)
        assert np.abs(ours.pixels - levels).max() <= 1, name
