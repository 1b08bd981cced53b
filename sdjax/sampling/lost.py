"""Pictures that left all bounds, and in words what most likely did it."""

from typing import Any

import jax.numpy as jnp

from sdjax.model.finite import FARTHEST, broken
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import counts_of
from sdjax.request.request import Request
from sdjax.text import prompts

USUAL_MOST = 100.0  # a guidance scale or a weight above it is named as the reason
HALF = "load the model with dtype='bfloat16' or 'float32'"


def lost_in_run(networks: Networks, asked: Request, latents: Any) -> dict[int, str]:
    """Pictures whose latents `b h w c` are NaN, infinite or far from all pictures, each with what did it."""
    return {i: _reason(networks, asked, i) for i in broken(latents, FARTHEST)}


def lost_in_decoding(spec: ModelSpec, latents: Any, pixels: Any) -> dict[int, str]:
    """Pictures whose pixels are NaN, or whose latents were no picture's, each with whether the VAE did it."""
    before = broken(latents, FARTHEST)
    given = f"its latents are NaN, infinite or beyond {FARTHEST:g}, where those of pictures have unit variance"
    own = f"the VAE of {spec.name} gives NaN or infinity, even in float32: load the model with another vae="
    return {i: own for i in broken(pixels)} | dict.fromkeys(before, given)


def _reason(networks: Networks, asked: Request, i: int) -> str:
    """What most likely made picture i's latents leave all bounds, and the remedy."""
    scale, weight = float(asked.guidance_scales[i]), _heaviest(networks.spec, asked, i)
    name, dtype = networks.spec.name, networks.dtype
    if scale > USUAL_MOST:
        return f"guidance_scale {scale:g} multiplies the U-Net's answers by too much; 5 to 15 is usual"
    if asked.image_scales is not None and asked.image_scales[i] > USUAL_MOST:
        return f"image_guidance_scale {asked.image_scales[i]:g} is too much for the U-Net's answers; 1.5 is usual"
    if weight > USUAL_MOST:
        return f"a weight of {weight:g} in its prompt is too much for the U-Net; 0.5 to 1.5 is usual"
    if dtype == jnp.float16:
        return f"the U-Net of {name} leaves the range of float16, which ends at 65,504: {HALF}"
    return (
        f"the U-Net of {name} left all bounds in {jnp.dtype(dtype).name}: sampler_options or latents= far from "
        "the usual do that, or parameters of another checkpoint"
    )


def _heaviest(spec: ModelSpec, asked: Request, i: int) -> float:
    """The largest weight in the prompts of picture i, or of one of them among others."""
    weights = [abs(branch.weight) for branch in asked.branches[i]]
    if asked.style != "plain":  # which has no weights
        texts = {(name, text) for branch in asked.branches[i] for along in branch.texts for name, text in along.items()}
        counts, encoders = counts_of(asked.new), spec.encoders
        rows = [
            prompts.chunks(text, encoders[name].tokenizer, asked.style, counts.get(name, {})) for name, text in texts
        ]
        weights += [abs(weight) for own in rows for row in own for weight in row.weights]
    return float(max(weights, default=0.0))
