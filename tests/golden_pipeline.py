"""Compares a checkpoint loaded by sdjax with the arrays that `golden/make_pipeline.py` got from diffusers."""

from collections.abc import Mapping

import numpy as np

import sdjax

PROMPTS, NEGATIVES = ["a red circle", "a blue square above a red ring"], ["blue", ""]
SCALE = 0.8  # of the adapter in `golden/make_adapters.py`
SAMPLERS = ("ddim", "pndm", "euler", "dpmpp_2m")


def relative(ours: object, theirs: np.ndarray) -> float:
    """Largest difference over the reference's largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def part_errors(sd: sdjax.StableDiffusion, expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative errors of the text encoder, the U-Net, the VAE both ways."""
    context = sd.encode_prompt(PROMPTS)
    encoded = sd.encode(expected["pixels"])
    return {
        "context": relative(context, expected["context"]),
        "prediction": relative(sd.predict(expected["x"], expected["t"], context), expected["prediction"]),
        "encoded": relative(encoded, expected["encoded"]),
        "decoded": relative(sd.decode(encoded), expected["decoded"].clip(-1, 1)),
    }


def run_errors(sd: sdjax.StableDiffusion, expected: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, float]:
    """Relative errors of the 20-step guided latents, by sampler."""
    errors = {}
    for sampler in SAMPLERS:
        out = sd.generate(
            PROMPTS, NEGATIVES, steps=20, sampler=sampler, guidance_scale=7.5, latents=noise, decode=False
        )
        errors[sampler] = relative(out.latents, expected[sampler])
    return errors
