"""The settings of a request: the arguments of `generate` that make the same pictures again."""

from collections.abc import Mapping
from typing import Any

from sdjax.diffusion.plan import Plan
from sdjax.metadata.bounds import GIVEN
from sdjax.request.checks import PLANNING, as_given, check_options, optional_texts, spread
from sdjax.request.image_inputs import BEGUN
from sdjax.request.request import SECOND, Request

# Arguments that the settings name where they are not as usual.
USUAL = {
    "noise_source": "jax", "prompt_style": "plain", "denoising_start": None, "denoising_end": None,
    "mask_blur": 0, "mask_crop": None, "stop_after": None,
}  # fmt: skip


def settings(given: Mapping[str, Any], asked: Request, refined: Request | None = None) -> dict[str, Any]:
    """The arguments of `generate` that make the pictures again, and of the rarer ones those that were given.

    asked: of the model; refined: of its refiner, which goes by its name.
    """
    each = given["num_images"]
    made = {
        "prompt": list(asked.prompts[::each]),
        "negative_prompt": list(asked.negative_prompts[::each]),
        **_planning(given, asked.plans),
        "guidance_scale": as_given(given["guidance_scale"], asked.guidance_scales.tolist()),
        "guidance_schedule": as_given(given["guidance_schedule"], [str(one) for one in asked.guidance_schedules]),
        "guidance_rescale": as_given(given["guidance_rescale"], asked.guidance_rescales.tolist()),
        "seed": as_given(given["seed"], list(asked.seeds)),
        "num_images": each,
        "height": asked.height,
        "width": asked.width,
        "first_image": given["first_image"],
        **{name: given[name] for name, usual in USUAL.items() if given[name] != usual},
    }
    for name in SECOND:
        if given[name] is not None:
            made[name] = optional_texts(given[name], len(made["prompt"]), name)
    made |= {name: "given" for name in GIVEN if given[name] is not None}
    made |= _of_picture(given, asked)
    if given["clip_skip"] is not None:
        made["clip_skip"] = str(asked.clip_skip)
    made |= asked.micro.settings()
    if refined is not None:
        made |= {"refiner": given["refiner"].name, "refiner_start": given["refiner_start"]} | refined.micro.settings()
    return made


def _of_picture(given: Mapping[str, Any], asked: Request) -> dict[str, Any]:
    """The numbers that go with a picture that was given."""
    inputs, made = asked.inputs, {}
    if inputs.begun and inputs.kind in BEGUN:
        strengths = [1.0 if strength is None else strength for strength in inputs.strengths]
        made["strength"] = as_given(given["strength"], strengths)
    if asked.image_scales is not None:
        made["image_guidance_scale"] = as_given(given["image_guidance_scale"], asked.image_scales.tolist())
    if "low_res" in inputs.uses:
        made["noise_level"] = inputs.noise_level
    return made


def _planning(arguments: Mapping[str, Any], plans: tuple[Plan, ...]) -> dict[str, Any]:
    """The arguments that make a plan as settings: a list where a list was given, one value where not."""
    columns = {name: spread(arguments[name], len(plans), name) for name in PLANNING}
    columns |= {"sampler": [plan.sampler for plan in plans], "steps": [plan.steps for plan in plans]}
    columns["sampler_options"] = [check_options(given) or None for given in columns["sampler_options"]]
    return {name: as_given(arguments[name], column) for name, column in columns.items()}
