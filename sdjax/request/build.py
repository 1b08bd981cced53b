"""From the arguments of `generate` to what each model has to do: checked whole, before anything is compiled or run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.progress import Run
from sdjax.images import masks, read
from sdjax.metadata.bounds import GIVEN
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import ClipSkip
from sdjax.request import checks, prompting, seeds
from sdjax.request.image_inputs import PIX2PIX, TEXT, VARIATION, ImageInputs
from sdjax.request.prompting import Branch
from sdjax.request.read_images import Given, read_image_inputs, resized
from sdjax.request.request import SECOND, Request
from sdjax.request.size_conditioning import REFINER_IDS, SizeConditioning
from sdjax.text.prompts import check_style

TEXTS = ("prompt", "negative_prompt", *SECOND)
OF_BASE = ("prompt_2", "negative_prompt_2", "target_size", "negative_target_size")
OF_REFINER = ("aesthetic_score", "negative_aesthetic_score")
OF_PICTURE = ("image", "mask", "strength", "depth", "mask_blur", "mask_crop", "noise_level", "image_guidance_scale")
IMAGE_SCALE = 1.5  # of InstructPix2Pix (Brooks et al. 2023, arXiv:2211.09800, section 4)
NO_NUMBERS = (*GIVEN, "seed", "refiner", "callback")  # read by those who know what they are
ALONE = (
    "{} is an SDXL refiner, trained on the last fifth of the noise levels: from pure noise its pictures fall apart. "
    "Give it to a base model as refiner=, or go on from latents= with denoising_start="
)


def plain(given: Given) -> dict[str, Any]:
    """The arguments, arrays of numbers or texts among them as Python's own lists. Raises ValueError for a jax key."""
    return {name: value if name in NO_NUMBERS else checks.plain(value, name) for name, value in given.items()}


def stages(spec: ModelSpec, given: Given) -> tuple[Request, Request | None]:
    """What `spec` has to do, and what its refiner has to do after it. Raises ValueError."""
    checks.check_known(given, "generate")
    checks.check_switches(given)
    if given["refiner"] is None:
        asked = request(spec, given)
        _tell_size(spec, given, asked.inputs)
        if spec.time_ids == REFINER_IDS and asked.latents is None and not asked.start_mix[0].any():
            notice(ALONE.format(spec.name))
        return asked, None
    _check_refiner(spec, given)
    refiner, cut = given["refiner"].spec, given["refiner_start"]
    asked = request(spec, {**given, **dict.fromkeys(OF_REFINER), "denoising_end": cut})
    _tell_size(spec, given, asked.inputs)
    rest = {**given, **dict.fromkeys(OF_BASE if refiner.time_ids == REFINER_IDS else ()), "denoising_start": cut}
    rest |= {"height": asked.height, "width": asked.width, "latents": None}
    rest |= dict.fromkeys(OF_PICTURE) | {"mask_blur": 0}
    if given["guidance_scale"] is None:  # one scale for both, the one that the settings name
        rest["guidance_scale"] = spec.guidance_scale
    refined = request(refiner, rest, goes_on=True)
    # The refiner goes on with the same picture held in the same place; where the run began is behind it.
    inputs = replace(asked.inputs, kind=TEXT, strengths=(None,) * len(asked.plans))
    return asked, replace(refined, drawn=tuple(plan.draws for plan in asked.plans), inputs=inputs)


def _tell_size(spec: ModelSpec, given: Given, inputs: ImageInputs) -> None:
    """Warns where a picture comes out of another size than it went in without that being asked."""
    if said := resized(spec, given, inputs):
        notice(said)


def _check_refiner(spec: ModelSpec, given: Given) -> None:
    refiner = getattr(given["refiner"], "spec", None)
    if not isinstance(refiner, ModelSpec):
        raise ValueError(f"refiner must be a loaded checkpoint, sdjax.load(...), not {short(given['refiner'])}")
    if spec.time_ids == REFINER_IDS:
        raise ValueError(f"{spec.name} is itself a refiner; call generate of the base model with refiner=")
    if given["denoising_start"] is not None or given["denoising_end"] is not None:
        raise ValueError("refiner= cuts the run at refiner_start; denoising_start and _end are for runs without")
    cut = given["refiner_start"]
    if isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 < cut < 1:
        raise ValueError(f"refiner_start must be a number between 0 and 1, where the refiner takes over, not {cut!r}")
    mine, other = ((one.vae.scaling_factor, one.vae.latent_channels, one.vae.factor) for one in (spec, refiner))
    if not spec.encoders or not refiner.encoders:
        raise ValueError("a model that varies pictures is told no text: it has no refiner and is none")
    if mine != other or refiner.unet.in_channels != refiner.vae.latent_channels:
        raise ValueError(f"{refiner.name} works in other latents than {spec.name}; a refiner shares the base's VAE")


def request(spec: ModelSpec, given: Given, goes_on: bool = False) -> Request:
    """What `spec` has to do; `goes_on` where its latents come from another model. Raises ValueError."""
    prompts = _prompts(spec, given)
    each = checks.check_count(given["num_images"], 1, "num_images")
    first = checks.check_count(given["first_image"], 0, "first_image")
    count = checks.check_pictures(len(prompts), each, first)
    if not spec.encoders and len(prompts) > 1:  # pictures stand for prompts: so many results of each
        given = {**given, "image": [one for one in given["image"] for _ in range(each)]}
    if given["stop_after"] is not None:
        checks.check_count(given["stop_after"], 1, "stop_after")
    for name in GIVEN[1:]:
        if isinstance(given[name], str) and given[name] == "given":
            raise ValueError(f"these settings are of a picture made from another: pass that as {name}=")
    inputs = read_image_inputs(spec, given, count)
    size = (inputs.height // spec.vae.factor, inputs.width // spec.vae.factor)
    latents, cut = given["latents"], given["denoising_start"]
    if latents is not None:
        latents = checks.check_latents(latents, (count, *size, spec.vae.latent_channels))
    elif cut is not None and not goes_on:
        raise ValueError("denoising_start goes on from latents: pass those of a run with denoising_end as latents=")
    runs = _runs(spec, given, inputs.strengths)
    style, source = given["prompt_style"], checks.check_source(given["noise_source"])
    check_style(style)
    texts = {name: checks.optional_texts(given[name], len(prompts), name) for name in TEXTS}
    texts["prompt"] = list(prompts)
    if inputs.kind == PIX2PIX and given["regions"] is not None:
        raise ValueError(f"{spec.name} changes a picture as a whole; regions= is for models that make one")
    regions = [] if given["regions"] is None else _regions(given["regions"])
    told = partial(_branches, spec, texts=texts, style=style, inputs=inputs, regions=regions)
    branches = [told(i, run=runs[i * each + k]) for i in range(len(prompts)) for k in range(each)]
    micro = SizeConditioning.read(dict(given), count, spec.time_ids)
    scale = spec.guidance_scale if given["guidance_scale"] is None else given["guidance_scale"]
    schedules = checks.spread(given["guidance_schedule"], count, "guidance_schedule")
    many = checks.is_list(given["seed"])
    models = (spec, *(() if given["refiner"] is None else (given["refiner"].spec,)))
    none_differs = any(model.zeros_for_empty_negative for model in models)
    return Request(
        prompts=tuple(text or "" for text in texts["prompt"] for _ in range(each)),
        # as the settings keep it: None only where it differs from the empty text
        negative_prompts=tuple(
            text if none_differs else text or "" for text in texts["negative_prompt"] for _ in range(each)
        ),
        branches=tuple(branches),
        style=style,
        clip_skip=_clip_skip(spec, given["clip_skip"], style),
        micro=micro,
        time_ids=micro.time_ids(inputs.height, inputs.width, count, spec.time_ids) if spec.time_ids else None,
        seeds=tuple(seeds.check(given["seed"], count)),
        numbers=tuple(first if many else first + i for i in range(count)),
        guidance_scales=checks.check_scales(scale, count),
        guidance_schedules=tuple(map(GuidanceSchedule.read, schedules)),
        guidance_rescales=checks.check_rescales(given["guidance_rescale"], count),
        inputs=inputs,
        runs=runs,
        latents=latents,
        noise_source=source,
        distilled=spec.unet.time_cond_proj_dim is not None,
        # a number for each place in a run, so that no two parts of one draw the same noise
        stage=0 if cut is None else max(1, round(1e6 * float(cut))),
        drawn=tuple(run.drawn for run in runs),
        image_scales=_image_scales(given, count) if inputs.kind == PIX2PIX else None,
        regions=_covered([mask for _, mask in regions], inputs, spec.vae.factor) if regions else None,
    )


def _prompts(spec: ModelSpec, given: Given) -> list[str]:
    """The prompts; of a model that has none, an empty one for each of its pictures."""
    if spec.encoders:
        if given["prompt"] is None:
            raise ValueError(f'prompt is missing: {spec.name} is told by text what to show ("" is a prompt too)')
        return checks.texts(given["prompt"], "prompt")
    for name in ("prompt", "negative_prompt", "regions"):
        told = given[name]
        if any(told) if isinstance(told, list | tuple) else told:  # settings hold a list of empty prompts
            raise ValueError(f"{spec.name} has no text encoder: it makes variations of image=, and takes no {name}")
    many = isinstance(given["image"], list | tuple)
    return [""] * (len(given["image"]) if many else 1)


def _image_scales(given: Given, count: int) -> np.ndarray:
    value = given["image_guidance_scale"]
    return checks.check_scales(IMAGE_SCALE if value is None else value, count, "image_guidance_scale", least=1.0)


def _regions(value: Any) -> list[tuple[str, Any]]:
    """(prompt, mask) of each region. Raises ValueError."""
    pairs = list(value) if isinstance(value, list | tuple) else [value]
    if not pairs:
        raise ValueError("regions is an empty list: give (prompt, mask) for each, or leave it out")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(
                "regions must be a list of (prompt, mask): what to show where the mask, a picture, is white; not "
                f"{str(pair)[:60]}"
            )
    return [(text, read.read_mask(mask, f"regions[{i}]")) for i, (text, mask) in enumerate(pairs)]


def _covered(drawn: Sequence[Any], inputs: ImageInputs, factor: int) -> np.ndarray:
    """Where the prompt counts, and where each region's does, float32 `n h w 1`; they add up to 1."""
    soft = [masks.latent_mask(masks.to_mask(mask, inputs.height, inputs.width), factor) for mask in drawn]
    total = np.sum(soft, axis=0)
    if not total.any():
        raise ValueError("the masks of regions are black everywhere; paint white where a region's prompt is to count")
    return np.stack([np.clip(1 - total, 0, None), *(mask / np.maximum(total, 1) for mask in soft)]).astype(np.float32)


def _runs(spec: ModelSpec, given: Given, strengths: Sequence[float | None]) -> tuple[Run, ...]:
    """A run per picture, made once for equal settings."""
    columns = [checks.spread(given[name], len(strengths), name) for name in checks.PLANNING]
    made: dict[str, Run] = {}
    runs = []
    for sampler, steps, schedule, preset, eta, extra, strength in zip(*columns, strengths, strict=True):
        # NumPy's float32 would take the plan's float64 arithmetic down with it.
        eta = eta.item() if isinstance(eta, np.generic) else eta
        own = {name: value for name, value in (("preset", preset), ("eta", eta)) if value is not None}
        options = {**checks.check_options(extra), **own}
        key = repr((sampler, steps, schedule, strength, sorted(options.items())))
        if key not in made:
            make = partial(spec.plan, sampler, steps, schedule, **options)
            run = Run.make(make, given["denoising_start"], given["denoising_end"], strength)
            # A1111 counts the evaluations that a prompt's edits go by from the picture on
            made[key] = replace(run, before=0) if preset == "a1111" and strength is not None else run
        runs.append(made[key])
    return tuple(runs)


def _clip_skip(spec: ModelSpec, value: Any, style: str) -> ClipSkip:
    skip = ClipSkip.read(value, style)
    for encoder in spec.encoders.values():
        skip.depth(encoder.config, spec.family, negative=False)
    return skip


def _branches(
    spec: ModelSpec,
    i: int,
    *,
    run: Run,
    texts: Mapping[str, Sequence[str | None]],
    style: str,
    inputs: ImageInputs,
    regions: Sequence[tuple[str, Any]],
) -> tuple[Branch, ...]:
    """The branches of prompt i: the negative one, then those of the prompt, then those of the regions."""
    second = "text_encoder_2" in spec.encoders and len(spec.encoders) > 1
    if not second and any(texts[name][i] is not None for name in SECOND):
        raise ValueError(f"prompt_2 is for a second text encoder, which {spec.name} does not have")

    def said(name: str) -> dict[str, str]:
        """By encoder; what the second is not told by itself, it is told as the first."""
        own = {encoder: f"{name}_2" if second and encoder.endswith("_2") else name for encoder in spec.encoders}
        return {encoder: _first(texts[key][i], texts[name][i], "") for encoder, key in own.items()}

    negative = said("negative_prompt")
    zero = spec.zeros_for_empty_negative and texts["negative_prompt"][i] is None
    zero = zero or spec.family.zeros_for_empty(style, negative)
    away = prompting.negative_branch(negative, run, style, zero or inputs.kind == VARIATION)
    made = (away, *prompting.branches(said("prompt"), run, style))
    if inputs.kind == PIX2PIX:
        made = (replace(away, blank=True), *made)
    for k, (text, _) in enumerate(regions):
        own = prompting.branches(dict.fromkeys(spec.encoders, text), run, style)
        made += tuple(replace(branch, region=k + 1) for branch in own)
    if style != "plain":  # which warns of what it cuts, once
        prompting.check(made, spec.encoders, style)
    if spec.unet.time_cond_proj_dim is not None and (len(made) > 2 or made[1].weight != 1):
        raise ValueError(
            f"{spec.name} has its guidance built in (LCM), so neither AND nor regions can join prompts; write them as "
            "one"
        )
    return made


def _first(*values: str | None) -> str:
    return next(value for value in values if value is not None)
