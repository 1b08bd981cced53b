"""What a call of `generate` asks for, in one form, and the settings that ask for the same again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from sdjax.core import short
from sdjax.core.keys import key
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan_batch import PlanBatch, stack_plans
from sdjax.diffusion.progress import Run
from sdjax.model.text_encoder import ClipSkip
from sdjax.request.checks import is_list
from sdjax.request.image_inputs import ImageInputs
from sdjax.request.prompting import Branch
from sdjax.request.size_conditioning import SizeConditioning

SECOND = ("prompt_2", "negative_prompt_2")


@dataclass(frozen=True, eq=False)
class Request:
    """b pictures to make, one entry per picture in each list."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]
    branches: tuple[tuple[Branch, ...], ...]  # the negative prompt's, then the prompt's
    style: str  # how prompts are read
    clip_skip: ClipSkip
    micro: SizeConditioning
    time_ids: tuple[np.ndarray, np.ndarray] | None  # SDXL's numbers (negative, positive), `b i` each
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]  # each picture's number under its seed
    guidance_scales: np.ndarray  # float32 [b]
    guidance_schedules: tuple[GuidanceSchedule, ...]
    guidance_rescales: np.ndarray  # float32 [b]
    inputs: ImageInputs
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
    def plan(self) -> Plan | PlanBatch:
        """One plan for all pictures, or one for each."""
        return self.plans[0] if len(set(map(id, self.plans))) == 1 else stack_plans(self.plans)

    @property
    def height(self) -> int:
        """Of what the networks work on, in pixels."""
        return self.inputs.height

    @property
    def width(self) -> int:
        """Of what the networks work on, in pixels."""
        return self.inputs.width

    @property
    def start_mix(self) -> np.ndarray:
        """Of the held picture and of noise (or of the latents to go on from) in what the runs start from, [2, b]."""
        begun = [strength is not None and self.inputs.begun for strength in self.inputs.strengths]
        starts = [plan.start for plan in self.plans]
        picture = [start.alpha if held else 0.0 for start, held in zip(starts, begun, strict=True)]
        noise = [start.sigma if held else 1.0 for start, held in zip(starts, begun, strict=True)]
        return np.array([picture, noise], np.float32)

    @property
    def guided(self) -> bool:
        """Whether any picture needs the network's answer without its prompt (a guidance scale above 1)."""
        if self.image_scales is not None:
            return bool((self.guidance_scales > 1).any())
        joined = any(len(own) != 2 or own[1].weight != 1 for own in self.branches)
        return not self.distilled and (joined or bool((self.guidance_scales > 1).any()))

    @property
    def answered(self) -> list[list[Branch]]:
        """The pulls that the network has to answer for, as many for each picture: those it lacks have no share."""
        if not self.guided:
            return [[own[2 if self.image_scales is not None else 1]] for own in self.branches]
        most = max(map(len, self.branches))
        return [[*own, *[replace(own[1], weight=0.0)] * (most - len(own))] for own in self.branches]

    def guidance(self, length: int) -> Guidance | None:
        """Guidance along the plan's table of that length; None where no picture has any."""
        if not self.guided:
            return None
        # A scale below 1 is no guidance, whatever the neighbours have.
        scales = np.maximum(self.guidance_scales, 1)
        weights = np.array([[branch.weight for branch in own[1:]] for own in self.answered], np.float32).T
        joined = None if len(weights) == 1 and (weights == 1).all() and self.regions is None else weights
        each = (scales, self.guidance_schedules, self.guidance_rescales)
        wholes = [run.whole for run in self.runs]
        images = None if self.image_scales is None else np.where(scales > 1, self.image_scales, 1)
        return Guidance.along(self.plan, *each, length, weights=joined, wholes=wholes, image_scales=images)

    def where(self, branches: list[list[Branch]]) -> np.ndarray | None:
        """Where each of the pulls but the negative one counts, float32 [k, b, h, w, 1]; None is everywhere."""
        if self.regions is None:
            return None
        return np.stack(
            [np.stack([self.regions[own[k].region] for own in branches]) for k in range(1, len(branches[0]))]
        )

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
