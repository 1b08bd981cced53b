"""From the arguments of `generate` to what each model has to do: checked whole, before anything is compiled or run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sdjax.core.notice import notice
from sdjax.diffusion.progress import Run
from sdjax.images import masks, read
from sdjax.model.spec import ModelSpec
from sdjax.model.tasks import TEXT
from sdjax.model.text_encoder import ClipSkip, NewVectors
from sdjax.request import checks, new_words, prompting, speed
from sdjax.request.arguments.adapters import AdapterArguments
from sdjax.request.arguments.arguments import Arguments
from sdjax.request.arguments.control import ControlArguments
from sdjax.request.arguments.images import ImageArguments
from sdjax.request.arguments.prompting import SECOND, Columns
from sdjax.request.arguments.size_conditioning import REFINER_IDS
from sdjax.request.image_inputs import ImageInputs
from sdjax.request.prompting import Branch
from sdjax.request.read_images import read_image_inputs, resized
from sdjax.request.request import Refinement, Request

ALONE = (
    "{} is an SDXL refiner, trained on the last fifth of the noise levels: from pure noise its pictures fall apart. "
    "Give it to a base model as refiner=, or go on from latents= with denoising_start="
)


def request(spec: ModelSpec, given: Arguments) -> Request:
    """What `spec` has to do, and in `refiner` what a refiner has to do after it. Raises ValueError."""
    checks.check_known(given.items(), "generate")
    given.monitoring.check_switches()
    given = replace(given, prompting=given.prompting.opened(spec))
    made = part(spec, given) if given.handoff.refiner is None else _refined(spec, given)
    given.monitoring.wanted(len(made.evaluated))
    if said := resized(spec, given, made.inputs):  # a picture comes out of another size than it went in
        notice(said)
    if spec.time_ids == REFINER_IDS and made.latents is None and not made.start_mix[0].any():
        notice(ALONE.format(spec.name))
    return made


def _refined(spec: ModelSpec, given: Arguments) -> Request:
    """What `spec` has to do up to the place where the refiner takes over, and that."""
    networks, cut = given.handoff.check_refiner(spec)
    first = replace(given, handoff=replace(given.handoff, denoising_end=cut), sizes=given.sizes.for_base())
    made = part(spec, first)
    rest = part(networks.spec, _rest(spec, given, made, networks.spec, cut), goes_on=True)
    # The refiner goes on with the same picture held in the same place; where the run began is behind it.
    inputs = replace(made.inputs, task=TEXT, strengths=(None,) * len(made.runs))
    rest = replace(rest, drawn=tuple(plan.draws for plan in made.plans), inputs=inputs)
    arguments = replace(made.arguments, handoff=given.handoff)  # which say it by refiner_start alone
    return replace(made, arguments=arguments, refiner=Refinement(networks, rest))


def _rest(spec: ModelSpec, given: Arguments, made: Request, refiner: ModelSpec, cut: float) -> Arguments:
    """The arguments of what the refiner does: the same texts and numbers, and no picture to begin from."""
    prompting, sizes, guidance = given.prompting, given.sizes, given.guidance
    if refiner.time_ids == REFINER_IDS:
        prompting, sizes = replace(prompting, prompt_2=None, negative_prompt_2=None), sizes.for_refiner()
    if guidance.guidance_scale is None:  # one scale for both, the one that the settings name
        guidance = replace(guidance, guidance_scale=made.arguments.guidance.guidance_scale)
    return replace(
        given,
        prompting=prompting,
        sizes=sizes,
        guidance=guidance,
        batch=replace(given.batch, height=made.height, width=made.width),
        handoff=replace(given.handoff, denoising_start=cut, latents=None),
        images=ImageArguments(regions=given.images.regions),
        adapters=AdapterArguments(),
        control=ControlArguments(),
    )


def part(spec: ModelSpec, given: Arguments, goes_on: bool = False) -> Request:
    """What one model has to do; `goes_on` where its latents come from another. Raises ValueError."""
    prompts = _prompts(spec, given)
    count = given.batch.count(len(prompts))
    given = replace(speed.resolved(given, count), control=given.control.opened())
    given.monitoring.check_stop()
    given.images.check_given()
    inputs = read_image_inputs(spec, _with_each_picture(spec, given, len(prompts)), count)
    latents = given.handoff.check_latents((count, *spec.latent_shape(inputs.height, inputs.width)), goes_on)
    runs = given.sampling.runs(spec, given.handoff, inputs.strengths)
    steering = given.control.steering(spec, runs, given.sampling.preset, inputs)
    checks.check_source(given.batch.noise_source)
    columns = given.prompting.columns(prompts)
    untagged, tags = given.prompting.tags(columns)
    outfits = given.adapters.outfits(spec, [tags[i // given.batch.num_images] for i in range(count)], runs)
    style = given.prompting.prompt_style
    bundled = {} if outfits is None else outfits.embeddings
    new = new_words.of_model(spec, {**bundled, **given.prompting.embeddings})
    regions = _regions(spec, inputs, given.images.regions)
    told = partial(_branches, spec, texts=untagged, style=style, inputs=inputs, regions=regions, new=new)
    branches = tuple(told(i // given.batch.num_images, run=run) for i, run in enumerate(runs))
    if not goes_on:
        own = {name: {word: vs[word] for word in given.prompting.embeddings} for name, vs in new.items()}
        new_words.warn_of_unused(spec, own, (t for own in branches for one in own for t in one.texts), style)
    skip = given.prompting.skip(spec)
    checked = _checked(spec, given, columns, skip, inputs, runs)
    checked = replace(
        checked, adapters=given.adapters.checked(outfits, count), control=given.control.checked(steering, count)
    )
    ids = checked.sizes.time_ids(inputs.height, inputs.width, count, spec.time_ids) if spec.time_ids else None
    covered = _covered([mask for _, mask in regions], inputs, spec.vae.factor) if regions else None
    drawn = tuple(run.drawn for run in runs)
    return Request(spec, checked, branches, skip, inputs, runs, ids, latents, drawn, covered, new, outfits, steering)


def _with_each_picture(spec: ModelSpec, given: Arguments, prompts: int) -> Arguments:
    """Where pictures stand for prompts: num_images results of each."""
    if spec.encoders or prompts == 1:
        return given
    pictures = [one for one in given.images.image for _ in range(given.batch.num_images)]
    return replace(given, images=replace(given.images, image=pictures))


def _prompts(spec: ModelSpec, given: Arguments) -> list[str]:
    """The prompts; of a model that has none, an empty one for each of its pictures. Raises ValueError."""
    if spec.encoders:
        return given.prompting.prompts(spec)
    texts = {"prompt": given.prompting.prompt, "negative_prompt": given.prompting.negative_prompt}
    others = {"regions": given.images.regions, "embeddings": list(given.prompting.embeddings or ())}
    for name, told in {**texts, **others}.items():
        if any(told) if isinstance(told, list | tuple) else told:  # settings hold a list of empty prompts
            raise ValueError(f"{spec.name} has no text encoder: it makes variations of image=, and takes no {name}")
    many = isinstance(given.images.image, list | tuple)
    return [""] * (len(given.images.image) if many else 1)


def _checked(
    spec: ModelSpec, given: Arguments, columns: Columns, skip: ClipSkip, inputs: ImageInputs, runs: Sequence[Run]
) -> Arguments:
    """The arguments in the form that settings have. Raises ValueError."""
    count, models = len(runs), [spec]
    if given.handoff.refiner is not None:
        models.append(given.handoff.refiner.spec)
    zeros = any(model.zeros_for_empty_negative for model in models)
    return replace(
        given,
        prompting=given.prompting.checked(columns, skip, zeros),
        sizes=given.sizes.checked(count, spec.time_ids),
        batch=given.batch.checked(count, inputs.height, inputs.width),
        guidance=given.guidance.checked(spec, count),
        images=given.images.checked(inputs, count),
        sampling=given.sampling.checked([run.plan for run in runs]),
    )


def _regions(spec: ModelSpec, inputs: ImageInputs, value: Any) -> list[tuple[str, Any]]:
    """(prompt, mask) of each region; none where None was given. Raises ValueError."""
    if value is None:
        return []
    if inputs.task.changes:
        raise ValueError(f"{spec.name} changes a picture as a whole; regions= is for models that make one")
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


def _branches(
    spec: ModelSpec,
    i: int,
    *,
    run: Run,
    texts: Columns,
    style: str,
    inputs: ImageInputs,
    regions: Sequence[tuple[str, Any]],
    new: NewVectors,
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
    away = prompting.negative_branch(negative, run, style, zero or inputs.task.varies)
    made = (away, *prompting.branches(said("prompt"), run, style))
    if inputs.task.changes:
        made = (replace(away, blank=True), *made)
    for k, (text, _) in enumerate(regions):
        own = prompting.branches(dict.fromkeys(spec.encoders, text), run, style)
        made += tuple(replace(branch, region=k + 1) for branch in own)
    if style != "plain":  # which warns of what it cuts, once
        prompting.check(made, spec.encoders, style, new)
    if spec.unet.time_cond_proj_dim is not None and (len(made) > 2 or made[1].weight != 1):
        raise ValueError(
            f"{spec.name} has its guidance built in (LCM), so neither AND nor regions can join prompts; write them as "
            "one"
        )
    return made


def _first(*values: str | None) -> str:
    return next(value for value in values if value is not None)
