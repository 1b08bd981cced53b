"""From a request to latents: what the network is told, where the run begins, and the scan that makes it.

Everything that computes is a pure function in `runtime.programs`, which the model's executor runs; this file calls them
in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.core.tree import Params
from sdjax.diffusion import scan
from sdjax.diffusion.guiders.guider import Guider, keeps_state
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.plan import padded_length
from sdjax.diffusion.table import Table
from sdjax.images import depth
from sdjax.model.networks import Networks
from sdjax.model.text_encoder import Encoding, Texts
from sdjax.nn.clip import NewWords
from sdjax.nn.conditioning import Added, Chunks, Conditions, Guide, guidance_embedding
from sdjax.nn.denoiser import Denoiser
from sdjax.nn.worn import Strengths
from sdjax.request import prompting
from sdjax.request.per_picture import once
from sdjax.request.prompting import Branch
from sdjax.request.request import Request
from sdjax.runtime import programs
from sdjax.sampling import guides as guides_
from sdjax.sampling import noise
from sdjax.sampling.bar import Bar
from sdjax.sampling.trace import Callbacks, Sampled, Trace
from sdjax.text.prompts import MAX_CHUNKS

# Rows of the table between two updates of the progress bar. An update is a call of its own: on a CPU it costs a
# millisecond beside 80 of a small model's rows, and 0.3 s of fresh scratch memory beside 40 s of SD 1.5's.
SEGMENT_ROWS = 8


def sample(networks: Networks, asked: Request, callbacks: Callbacks) -> Sampled:
    """Runs the plan of the request. A run that is stopped ends with the clean latents last predicted."""
    # Two sizes of table in practice (64 and 128 evaluations), and padding after any of them.
    length, needed = padded_length(asked.plan.rows - 1) + SEGMENT_ROWS - 1, asked.plan.rows
    table, guidance = asked.plan.table(length), asked.guidance(length)
    rows = asked.evaluated
    kept, unfinished = callbacks.show(len(rows)), any(plan.unfinished for plan in asked.plans)
    bar = Bar(len(rows), callbacks.progress)
    stride = 1 if callbacks.closely else needed if bar.hidden else SEGMENT_ROWS
    outfits = asked.outfits
    if outfits is not None:
        networks = networks.wearing(outfits.slots, outfits.hypernetworks, outfits.key)
    spec, run = networks.spec, networks.executor.run
    with bar.shown():
        noises = noise.make(asked, spec.latent_shape(asked.height, asked.width), run)
        known, carry = _begin(networks, asked, table, noises, None if guidance is None else guidance.guider)
        channels, branches = _channels(networks, asked, noises), asked.answered
        encoding = _encodings(networks, asked)
        regions = None if guidance is None else networks.executor.shard_inputs(asked.where(branches), 1)
        guidance = networks.executor.shard_inputs(guidance, -1)
        denoiser, params, guides = _steered(networks, asked, branches[0], len(table))
        changes = None if outfits is None else outfits.changes
        for start, stop, texts in prompting.pieces(branches, asked.plans, needed, changes):
            encodings = [encoding(i, start) for i in range(len(branches))]
            worn = None if outfits is None else outfits.strengths("unet", start)
            told = _conditions(networks, asked, branches, texts, encodings, channels, worn, guides)
            told = _precomputed(networks, denoiser, params, told, len(branches[0]))
            unet = (params, told, guidance, known, regions)
            for first in range(start, stop, stride):
                last = min(first + stride, stop)
                part = table.only(first, len(table) if last == needed else last)
                carry = run(programs.run_rows, denoiser, None, carry, part, *unet)
                seen = Trace(asked, table, rows, partial(run, programs.inspect_row, carry, table), known)
                done = seen.done(last)
                if not bar.hidden:
                    jax.block_until_ready(carry)
                    bar.reach(done)
                # A run that is complete keeps its result; one that another was to go on with ends here.
                ended = done == len(rows) and not unfinished
                if callbacks.closely and first in rows and callbacks.stops(seen, done) and not ended:
                    return seen.stopped(last, kept)
    return Sampled(run(programs.result, carry), len(rows), seen.steps(kept))


# ---------------------------------------------------------------------- where the run begins


def _begin(
    networks: Networks, asked: Request, table: Table, noises: noise.Draws, guider: Guider | None
) -> tuple[KnownRegion, scan.Carry]:
    """What is held of the pictures, and the scan's state before its first row."""
    start = noises["start"] if asked.latents is None or asked.stage else jnp.asarray(asked.latents)
    known = networks.executor.shard_inputs(_held(networks, asked, noises, start), 0)
    goes_on = start if asked.latents is None else jnp.asarray(asked.latents)
    stateful = guider if guider is not None and keeps_state(guider, start.shape) else None
    carry = networks.executor.run(programs.begin, stateful, goes_on, known, asked.start_mix, table)
    if not asked.plan.draws:
        return known, carry
    sampler = None
    if noises.sampler is not None:
        # As many draws as rows, so that plans with more or fewer are one program.
        sampler = np.zeros((len(table), *start.shape), np.float32)
        sampler[: len(noises.sampler)] = noises.sampler
    return known, networks.executor.run(programs.draw, carry, table, asked.keys(), sampler)


def _held(networks: Networks, asked: Request, noises: noise.Draws, start: jax.Array) -> KnownRegion:
    inputs = asked.inputs
    nothing = KnownRegion.nothing(start)
    masked = inputs.latent_mask is not None and not inputs.task.shows_mask
    if not inputs.begun or not (masked or asked.start_mix[0].any()):
        return nothing
    if inputs.latents is not None:
        original = jnp.asarray(inputs.latents)
    else:
        original = networks.encode(inputs.pixels, noises["encoding"])
    return KnownRegion(original, jnp.asarray(inputs.latent_mask) if masked else nothing.mask, start)


# ---------------------------------------------------------------------- what the network is told


def _channels(networks: Networks, asked: Request, noises: noise.Draws) -> jax.Array | None:
    """What stands beside the latents, `b h w e`; None where nothing does."""
    inputs = asked.inputs
    if inputs.task.shows_mask:
        hidden = networks.encode(inputs.hidden, noises["masked"])
        return jnp.concatenate([jnp.asarray(inputs.latent_mask), hidden], axis=-1)
    if inputs.task.changes:
        return networks.encode(inputs.pixels, None) / networks.spec.vae.scaling_factor
    if inputs.low_res is not None:
        return inputs.low_res.alpha * jnp.asarray(inputs.pixels) + inputs.low_res.sigma * noises["low_res"]
    if inputs.task.maps_depth:
        size = networks.spec.latent_shape(asked.height, asked.width)[:2]
        return jnp.stack([depth.depth_channel(one, size) for one in _depth_maps(networks, asked)])
    return None


def _depth_maps(networks: Networks, asked: Request) -> Sequence[Any]:
    """As given, or estimated from the pictures, `H W` each."""
    inputs = asked.inputs
    if inputs.depth is not None:
        return inputs.depth
    assert inputs.sources is not None
    return once(inputs.sources, networks.estimate_depth)


def _encodings(networks: Networks, asked: Request) -> Callable[[int, int], Encoding]:
    """(picture, row of its plan) -> how its texts are encoded there: by encoders that wear what the picture wears."""
    spec, outfits = networks.spec, asked.outfits

    @cache
    def encoding(*worn: tuple[str, tuple[float, ...]]) -> Encoding:
        strengths = {name: Strengths(np.array(ranks, np.float32)) for name, ranks in worn}

        def encode(component: str, ids: Any, depth: int, new: NewWords | None) -> tuple[np.ndarray, np.ndarray]:
            return networks.encode_row(component, ids, depth, new, strengths.get(component))

        return Encoding(spec.encoders, cache(encode), spec.family, asked.style, asked.clip_skip, asked.new)

    def of_picture(i: int, row: int) -> Encoding:
        if outfits is None:
            return encoding()
        names = [name for name in spec.encoders if name in outfits.slots]
        return encoding(*((name, tuple(outfits.strengths(name, row).ranks[i].tolist())) for name in names))

    return of_picture


def _steered(
    networks: Networks, asked: Request, branches: Sequence[Branch], length: int
) -> tuple[Denoiser, Params, tuple[Guide, ...]]:
    """What predicts, its parameters, and what each network beside the U-Net is told; there may be none."""
    if asked.steering is None:
        return networks.denoiser, networks.params["unet"], ()
    beside = networks.beside([one.adapter for one in asked.steering.all])
    return *beside, guides_.make(networks, asked.steering, beside, branches, length)


def _conditions(
    networks: Networks,
    asked: Request,
    branches: Sequence[Sequence[Branch]],
    texts: Sequence[Sequence[Texts]],
    encodings: Sequence[Encoding],
    channels: jax.Array | None,
    worn: Strengths | None,
    guides: tuple[Guide, ...],
) -> Conditions:
    """What the U-Net is told for each branch of every picture, the first branch of all of them first."""
    states, pooled, ids, shown = [], [], [], []
    embeds = _image_embeds(networks, asked) if asked.inputs.task.varies else []
    for k in range(len(branches[0])):
        for i, own in enumerate(branches):
            made, summary = encodings[i](texts[i][k], own[k].negative) if networks.spec.encoders else embeds[i]
            states.append(0 * made[:1] if own[k].zero else made)
            pooled.append(0 * summary if own[k].zero else summary)
            shown.append(0.0 if own[k].blank else 1.0)
            if asked.time_ids is not None:
                ids.append(asked.time_ids[0 if own[k].negative else 1][i])
    features, parts, count = networks.spec.unet.time_cond_proj_dim, len(branches[0]), len(branches)
    level = asked.inputs.noise_level if asked.inputs.task.enlarges else None
    beside = None
    if channels is not None:
        beside = jnp.tile(channels, (parts, 1, 1, 1)) * jnp.asarray(shown, jnp.float32)[:, None, None, None]
    return Conditions(
        Chunks({}, *prompting.in_pieces(states, MAX_CHUNKS)),
        Added(jnp.asarray(np.stack(pooled)), jnp.asarray(np.stack(ids))) if ids else None,
        guidance_embedding(jnp.asarray(asked.guidance_scales), features) if features else None,
        beside,
        None if level is None else jnp.tile(np.full(count, level, np.int32), parts),
        jax.tree.map(lambda each: np.tile(each, (parts, 1)), worn),
        guides,
    )


def _precomputed(networks: Networks, denoiser: Denoiser, params: Params, told: Conditions, parts: int) -> Conditions:
    """The same where programs want it, with what of it is the same at every step made beforehand."""
    told = networks.executor.shard_inputs(told, 0, parts)
    text = Conditions(told.context, worn=told.worn)
    made = networks.executor.run(programs.precompute_kv, denoiser, params, text)
    pairs = zip(told.control, made.control, strict=True)
    control = tuple(replace(guide, text=own.text) for guide, own in pairs)
    return replace(told, context=made.context, control=control)


def _image_embeds(networks: Networks, asked: Request) -> list[tuple[np.ndarray, np.ndarray]]:
    """What image variations are told in place of a text: the picture's own embedding as one token, `1 1 d`."""
    assert asked.inputs.sources is not None
    embeds = [np.asarray(one) for one in once(asked.inputs.sources, networks.encode_image)]
    return [(one, one[0, 0]) for one in embeds]
