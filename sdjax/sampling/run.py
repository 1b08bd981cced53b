"""From a request to latents: what the network is told, where the run begins, and the scan that makes it.

Everything that computes is a pure function in `programs`, or another of its name (see `StableDiffusion.programs`);
this file calls them in order.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.diffusion import scan
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import padded_length
from sdjax.diffusion.table import Table
from sdjax.images import depth
from sdjax.model import finite
from sdjax.model.text_encoder import EncodeRow, Encoding, Texts
from sdjax.nn.conditioning import Added, Chunks, Conditions, guidance_embedding
from sdjax.request import prompting
from sdjax.request.image_inputs import DEPTH, INPAINTING, PIX2PIX, UPSCALING, VARIATION
from sdjax.request.prompting import Branch
from sdjax.request.read_images import once
from sdjax.request.request import Request
from sdjax.runtime.denoisers import denoiser_of
from sdjax.sampling import noise as draws
from sdjax.sampling import trace
from sdjax.sampling.bar import Bar
from sdjax.sampling.trace import Callbacks, Sampled, Trace
from sdjax.text.prompts import MAX_CHUNKS

if TYPE_CHECKING:
    from sdjax.pipeline import StableDiffusion

# Rows of the table between two updates of the progress bar. An update is a call of its own: on a CPU it costs a
# millisecond beside 80 of a small model's rows, and 0.3 s of fresh scratch memory beside 40 s of SD 1.5's.
SEGMENT_ROWS = 8


def sample(sd: "StableDiffusion", asked: Request, callbacks: Callbacks) -> Sampled:
    """Runs the plan of the request. A run that is stopped ends with the clean latents last predicted."""
    # Two sizes of table in practice (64 and 128 evaluations), and padding after any of them.
    length, needed = padded_length(asked.plan.rows - 1) + SEGMENT_ROWS - 1, asked.plan.rows
    table, guidance = asked.plan.table(length), asked.guidance(length)
    rows = trace.evaluated(table)
    kept, unfinished = trace.wanted(callbacks.show, len(rows)), any(plan.unfinished for plan in asked.plans)
    bar = Bar(len(rows), callbacks.progress)
    stride = 1 if callbacks.closely else needed if bar.hidden else SEGMENT_ROWS
    denoiser = denoiser_of(sd.unet, sd.dtype)
    with bar.shown():
        noises = draws.make(asked, _latent_shape(sd, asked), sd.programs.noise)
        known, carry = _begin(sd, asked, table, noises)
        beside, labels = _channels(sd, asked, noises), _labels(asked)
        branches, encoding = asked.answered, Encoding(sd.encoders, encode_row(sd), sd.xl, asked.style, asked.clip_skip)
        regions = None if guidance is None else sd.programs.shard_inputs(asked.where(branches), 1)
        guidance = sd.programs.shard_inputs(guidance, -1)
        for start, stop, texts in prompting.pieces(branches, asked.plans, needed):
            told = _conditions(sd, asked, branches, texts, encoding, beside, labels)
            for first in range(start, stop, stride):
                last = min(first + stride, stop)
                part = table.only(first, len(table) if last == needed else last)
                carry = sd.programs.run_rows(
                    denoiser, carry, part, sd.compute_params["unet"], told, guidance, known, regions
                )
                seen = Trace(asked, table, rows, carry, known, sd.programs.inspect_row)
                done = seen.done(last)
                if not bar.hidden:
                    jax.block_until_ready(carry)
                    bar.reach(done)
                # A run that is complete keeps its result; one that another was to go on with ends here.
                if (
                    callbacks.closely
                    and first in rows
                    and callbacks.stops(seen, done)
                    and (done < len(rows) or unfinished)
                ):
                    return seen.stopped(last, kept)
    return Sampled(sd.programs.result(carry), len(rows), seen.steps(kept))


# ---------------------------------------------------------------------- where the run begins


def _latent_shape(sd: "StableDiffusion", asked: Request) -> tuple[int, int, int]:
    factor = sd.vae.factor
    return asked.height // factor, asked.width // factor, sd.vae.latent_channels


def _begin(sd: "StableDiffusion", asked: Request, table: Table, noises: draws.Draws) -> tuple[KnownRegion, scan.Carry]:
    """What is held of the pictures, and the scan's state before its first row."""
    start = noises["start"] if asked.latents is None or asked.stage else jnp.asarray(asked.latents)
    known = sd.programs.shard_inputs(_held(sd, asked, noises, start), 0)
    goes_on = start if asked.latents is None else jnp.asarray(asked.latents)
    carry = sd.programs.begin(goes_on, known, asked.start_mix, table)
    if not asked.plan.draws:
        return known, carry
    sampler = None
    if noises.sampler is not None:
        # As many draws as rows, so that plans with more or fewer are one program.
        sampler = np.zeros((len(table), *start.shape), np.float32)
        sampler[: len(noises.sampler)] = noises.sampler
    return known, sd.programs.draw(carry, table, asked.keys(), sampler)


def _held(sd: "StableDiffusion", asked: Request, noises: draws.Draws, start: jax.Array) -> KnownRegion:
    inputs = asked.inputs
    nothing = KnownRegion.nothing(start)
    masked = inputs.latent_mask is not None and inputs.kind != INPAINTING
    if not inputs.begun or not (masked or asked.start_mix[0].any()):
        return nothing
    if inputs.latents is not None:
        original = jnp.asarray(inputs.latents)
    else:
        original = encode(sd, inputs.pixels, noises["encoding"])
    return KnownRegion(original, jnp.asarray(inputs.latent_mask) if masked else nothing.mask, start)


def encode(sd: "StableDiffusion", pixels: Any, noise: jax.Array | None) -> jax.Array:
    """Pixels `b H W 3` -> latents: a draw by unit `noise`, or the mean. Raises ValueError where they are not finite."""
    pixels = jnp.asarray(pixels)
    latents = finite.by_picture(sd, lambda where, *args: where.encode(sd.vae, *args), pixels, noise)
    if not isinstance(latents, jax.core.Tracer) and finite.broken(latents):
        raise ValueError(
            f"the VAE of {sd.name} encodes this picture as NaN or infinity, even in float32: load the model with "
            "another vae=, or look whether the pixels are numbers in [-1, 1]"
        )
    return latents


# ---------------------------------------------------------------------- what the network is told


def _channels(sd: "StableDiffusion", asked: Request, noises: draws.Draws) -> jax.Array | None:
    """What stands beside the latents, `b h w e`; None where nothing does."""
    inputs = asked.inputs
    if inputs.kind == INPAINTING:
        hidden = encode(sd, inputs.hidden, noises["masked"])
        return jnp.concatenate([jnp.asarray(inputs.latent_mask), hidden], axis=-1)
    if inputs.kind == PIX2PIX:
        return encode(sd, inputs.pixels, None) / sd.vae.scaling_factor
    if inputs.low_res is not None:
        return inputs.low_res.alpha * jnp.asarray(inputs.pixels) + inputs.low_res.sigma * noises["low_res"]
    if inputs.kind == DEPTH:
        size = _latent_shape(sd, asked)[:2]
        return jnp.stack([depth.depth_channel(one, size) for one in _depth_maps(sd, asked)])
    return None


def _depth_maps(sd: "StableDiffusion", asked: Request) -> Sequence[Any]:
    """As given, or estimated from the pictures, `H W` each."""
    inputs = asked.inputs
    if inputs.depth is not None:
        return inputs.depth
    assert inputs.sources is not None
    return once(inputs.sources, sd.estimate_depth)


def _labels(asked: Request) -> np.ndarray | None:
    inputs = asked.inputs
    return np.full(len(asked.plans), inputs.noise_level, np.int32) if inputs.kind == UPSCALING else None


def _conditions(
    sd: "StableDiffusion",
    asked: Request,
    branches: Sequence[Sequence[Branch]],
    texts: Sequence[Sequence[Texts]],
    encoding: Encoding,
    channels: jax.Array | None,
    labels: np.ndarray | None,
) -> Conditions:
    """What the U-Net is told for each pull on every picture, the first pull on all of them first."""
    states, pooled, ids, shown = [], [], [], []
    embeds = _image_embeds(sd, asked) if asked.inputs.kind == VARIATION else []
    for k in range(len(branches[0])):
        for i, own in enumerate(branches):
            made, summary = encoding(texts[i][k], own[k].negative) if sd.encoders else embeds[i]
            states.append(0 * made[:1] if own[k].zero else made)
            pooled.append(0 * summary if own[k].zero else summary)
            shown.append(0.0 if own[k].blank else 1.0)
            if asked.time_ids is not None:
                ids.append(asked.time_ids[0 if own[k].negative else 1][i])
    features, parts = sd.unet.time_cond_proj_dim, len(branches[0])
    beside = None
    if channels is not None:
        beside = jnp.tile(channels, (parts, 1, 1, 1)) * jnp.asarray(shown, jnp.float32)[:, None, None, None]
    told = {
        "added": Added(jnp.asarray(np.stack(pooled)), jnp.asarray(np.stack(ids))) if ids else None,
        "guidance": guidance_embedding(jnp.asarray(asked.guidance_scales), features) if features else None,
        "channels": beside,
        "class_labels": None if labels is None else jnp.tile(labels, parts),
    }
    pieces, told = sd.programs.shard_inputs((prompting.in_pieces(states, MAX_CHUNKS), told), 0, parts)
    text = Conditions(Chunks({}, *pieces))
    made = sd.programs.precompute_kv(denoiser_of(sd.unet, sd.dtype), sd.compute_params["unet"], text)
    return replace(made, **told)


def _image_embeds(sd: "StableDiffusion", asked: Request) -> list[tuple[np.ndarray, np.ndarray]]:
    """What image variations are told in place of a text: the picture's own embedding as one token, `1 1 d`."""
    assert asked.inputs.sources is not None
    embeds = [np.asarray(one) for one in once(asked.inputs.sources, sd.encode_image)]
    return [(one, one[0, 0]) for one in embeds]


def encode_row(sd: "StableDiffusion") -> EncodeRow:
    """Runs a text encoder on a row of ids; remembers, for one call of `generate`, what it has run on."""

    @functools.cache
    def encode(component: str, ids: tuple[int, ...], depth: int) -> tuple[np.ndarray, np.ndarray]:
        config, row = sd.encoders[component].config, np.asarray(ids, np.int32)
        made = finite.whole(
            sd,
            component,
            lambda where, dtype, params: where.encode_text(config, dtype, not sd.xl, params, row, np.int32(depth)),
        )
        return np.asarray(made[0]), np.asarray(made[1])

    return encode
