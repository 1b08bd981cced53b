"""What a call of `generate` asks for, in one form, and the settings that ask for the same again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from sdjax import short
from sdjax.bounds import GIVEN
from sdjax.canvas import BEGUN, Canvas
from sdjax.checks import PLANNING, as_given, check_options, is_list, optional_texts, spread
from sdjax.conditions import ClipSkip, Pull
from sdjax.diffusion.guidance import Guidance, GuidanceSchedule
from sdjax.diffusion.lanes import Lanes, stack_plans
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.run import Run
from sdjax.keys import key
from sdjax.micro import MicroConditions

SECOND = ("prompt_2", "negative_prompt_2")
# Arguments that the settings name where they are not as usual.
USUAL = {
    "noise_source": "jax", "prompt_style": "plain", "denoising_start": None, "denoising_end": None,
    "mask_blur": 0, "mask_crop": None, "stop_after": None,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Request:
    """b pictures to make, one entry per picture in each list."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]
    pulls: tuple[tuple[Pull, ...], ...]  # the negative prompt's, then the prompt's
    style: str  # how prompts are read
    clip_skip: ClipSkip
    micro: MicroConditions
    time_ids: tuple[np.ndarray, np.ndarray] | None  # SDXL's numbers (negative, positive), `b i` each
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]  # each picture's number under its seed
    guidance_scales: np.ndarray  # float32 [b]
    guidance_schedules: tuple[GuidanceSchedule, ...]
    guidance_rescales: np.ndarray  # float32 [b]
    canvas: Canvas
    runs: tuple[Run, ...]  # the same object for pictures with the same settings
    latents: np.ndarray | None  # float32 [b, h, w, c], given: starting noise, or where a run goes on from
    noise_source: str = "jax"
    distilled: bool = False  # the U-Net was told the guidance scale when it was trained, and needs no second half
    stage: int = 0  # above 0 where this goes on from latents: a number for each place in the run
    drawn: tuple[int, ...] = ()  # draws of each picture before this stage
    image_scales: np.ndarray | None = None  # float32 [b], of a picture that is to be changed
    regions: np.ndarray | None = None  # float32 `n h w 1`: where the prompt counts, then where each region's does

    __repr__ = short.fields

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Each picture's."""
        return tuple(run.plan for run in self.runs)

    @cached_property
    def plan(self) -> Plan | Lanes:
        """One plan for all pictures, or one for each."""
        return self.plans[0] if len(set(map(id, self.plans))) == 1 else stack_plans(self.plans)

    @property
    def height(self) -> int:
        """Of what the networks work on, in pixels."""
        return self.canvas.height

    @property
    def width(self) -> int:
        """Of what the networks work on, in pixels."""
        return self.canvas.width

    @property
    def shares(self) -> np.ndarray:
        """Of the held picture and of noise (or of the latents to go on from) in what the runs start from, [2, b]."""
        begun = [strength is not None and self.canvas.begun for strength in self.canvas.strengths]
        starts = [plan.start for plan in self.plans]
        picture = [start.alpha if held else 0.0 for start, held in zip(starts, begun, strict=True)]
        noise = [start.sigma if held else 1.0 for start, held in zip(starts, begun, strict=True)]
        return np.array([picture, noise], np.float32)

    @property
    def guided(self) -> bool:
        """Whether any picture needs the network's answer without its prompt (a guidance scale above 1)."""
        if self.image_scales is not None:
            return bool((self.guidance_scales > 1).any())
        joined = any(len(own) != 2 or own[1].share != 1 for own in self.pulls)
        return not self.distilled and (joined or bool((self.guidance_scales > 1).any()))

    @property
    def answered(self) -> list[list[Pull]]:
        """The pulls that the network has to answer for, as many for each picture: those it lacks have no share."""
        if not self.guided:
            return [[own[2 if self.image_scales is not None else 1]] for own in self.pulls]
        most = max(map(len, self.pulls))
        return [[*own, *[replace(own[1], share=0.0)] * (most - len(own))] for own in self.pulls]

    def guidance(self, length: int) -> Guidance | None:
        """Guidance along the plan's table of that length; None where no picture has any."""
        if not self.guided:
            return None
        # A scale below 1 is no guidance, whatever the neighbours have.
        scales = np.maximum(self.guidance_scales, 1)
        shares = np.array([[pull.share for pull in own[1:]] for own in self.answered], np.float32).T
        joined = None if len(shares) == 1 and (shares == 1).all() and self.regions is None else shares
        each = (scales, self.guidance_schedules, self.guidance_rescales)
        wholes = [run.whole for run in self.runs]
        images = None if self.image_scales is None else np.where(scales > 1, self.image_scales, 1)
        return Guidance.along(self.plan, *each, length, shares=joined, wholes=wholes, image_scales=images)

    def where(self, pulls: list[list[Pull]]) -> np.ndarray | None:
        """Where each of the pulls but the negative one counts, float32 [k, b, h, w, 1]; None is everywhere."""
        if self.regions is None:
            return None
        return np.stack([np.stack([self.regions[own[k].region] for own in pulls]) for k in range(1, len(pulls[0]))])

    def keys(self, stage: int | None = None) -> jax.Array:
        """One key per picture: fold_in(the seed's key, number); of a later stage, that folded once more."""
        stage = self.stage if stage is None else stage
        keys = jax.vmap(jax.random.fold_in)(key(np.asarray(self.seeds, np.uint64)), np.asarray(self.numbers, np.uint32))
        return jax.vmap(partial(jax.random.fold_in, data=stage))(keys) if stage else keys

    def alone(self, settings: Mapping[str, Any], i: int) -> dict[str, Any]:
        """Of the settings of all pictures, those that make picture i alone."""
        own = {
            "prompt": self.prompts[i],
            "negative_prompt": self.negative_prompts[i],
            "seed": self.seeds[i],
            "first_image": self.numbers[i],
            "num_images": 1,
        }
        own |= {name: settings[name][i // settings["num_images"]] for name in SECOND if name in settings}
        mine = {name: value for name, value in {**settings, **own}.items() if name not in SECOND or value is not None}
        return {name: value[i] if is_list(value) else value for name, value in mine.items()}


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
    canvas, made = asked.canvas, {}
    if canvas.begun and canvas.kind in BEGUN:
        strengths = [1.0 if strength is None else strength for strength in canvas.strengths]
        made["strength"] = as_given(given["strength"], strengths)
    if asked.image_scales is not None:
        made["image_guidance_scale"] = as_given(given["image_guidance_scale"], asked.image_scales.tolist())
    if "low_res" in canvas.uses:
        made["noise_level"] = canvas.noise_level
    return made


def _planning(arguments: Mapping[str, Any], plans: tuple[Plan, ...]) -> dict[str, Any]:
    """The arguments that make a plan as settings: a list where a list was given, one value where not."""
    columns = {name: spread(arguments[name], len(plans), name) for name in PLANNING}
    columns |= {"sampler": [plan.sampler for plan in plans], "steps": [plan.steps for plan in plans]}
    columns["sampler_options"] = [check_options(given) or None for given in columns["sampler_options"]]
    return {name: as_given(arguments[name], column) for name, column in columns.items()}
