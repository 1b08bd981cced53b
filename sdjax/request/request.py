"""What a call of `generate` asks for: checked, in one form, and not yet run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from sdjax.core.keys import key
from sdjax.core.short import cut
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.plan_batch import PlanBatch, stack_plans
from sdjax.diffusion.progress import Run
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import ClipSkip, NewVectors
from sdjax.request.arguments.arguments import DECLARED, Arguments
from sdjax.request.checks import is_list, spread, unique
from sdjax.request.control_inputs import Steering
from sdjax.request.image_inputs import ImageInputs
from sdjax.request.prompting import Branch
from sdjax.request.worn import Outfits


@dataclass(frozen=True, eq=False)
class Request:
    """b pictures to make, one entry per picture in each tuple.

    Attributes:
      spec: the model that it was checked against. arguments: of `generate`, checked.
      branches: of each picture, the negative prompt's, then the prompt's, then the regions'.
      clip_skip: layers of the text encoders to leave out. inputs: what the runs start from besides text.
      runs: the same object for pictures with the same settings.
      time_ids: SDXL's numbers (negative, positive), `b i` each.
      latents: float32 `b h w c`, given: starting noise, or where a run goes on from.
      drawn: draws of each picture before this part of its run.
      regions: float32 `n h w 1`: where the prompt counts, then where each region's does.
      new: words of the prompts that the text encoders' vocabularies do not have.
      outfits: which adapters the pictures wear, or None. steering: what steers them, or None.
      refiner: what goes on with the latents, or None.
    """

    spec: ModelSpec
    arguments: Arguments
    branches: tuple[tuple[Branch, ...], ...]
    clip_skip: ClipSkip
    inputs: ImageInputs
    runs: tuple[Run, ...]
    time_ids: tuple[np.ndarray, np.ndarray] | None = None
    latents: np.ndarray | None = None
    drawn: tuple[int, ...] = ()
    regions: np.ndarray | None = None
    new: NewVectors = field(default_factory=dict)
    outfits: Outfits | None = None
    steering: Steering | None = None
    refiner: "Refinement | None" = None

    def __repr__(self) -> str:
        """Of one line: how many, how large, how made."""
        told = described(self.settings, len(self.runs))
        return f"Request({told}{'' if self.refiner is None else f', refined by {self.refiner.networks.spec.name!r}'})"

    # ------------------------------------------------------------------ of the arguments, an entry per picture

    @property
    def prompts(self) -> tuple[str, ...]:
        """Each picture's prompt."""
        return self._each("prompting", "prompt")

    @property
    def negative_prompts(self) -> tuple[str | None, ...]:
        """Each picture's negative prompt; None only where a model tells that from the empty text."""
        return self._each("prompting", "negative_prompt")

    @property
    def style(self) -> str:
        """How prompts are read."""
        return self.arguments.prompting.prompt_style

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each picture's seed."""
        return self._each("batch", "seed")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Each picture's number under its seed."""
        return self.arguments.batch.numbers(len(self.runs))

    @property
    def noise_source(self) -> str:
        """Whose noise a seed means."""
        return self.arguments.batch.noise_source

    @cached_property
    def guidance_scales(self) -> np.ndarray:
        """float32 [b]."""
        return np.array(self._each("guidance", "guidance_scale"), np.float32)

    @cached_property
    def guidance_schedules(self) -> tuple[GuidanceSchedule, ...]:
        """Where in its run each picture's guidance acts."""
        return tuple(map(GuidanceSchedule.read, self._each("guidance", "guidance_schedule")))

    @cached_property
    def guidance_rescales(self) -> np.ndarray:
        """float32 [b]."""
        return np.array(self._each("guidance", "guidance_rescale"), np.float32)

    @cached_property
    def image_scales(self) -> np.ndarray | None:
        """float32 [b], of a picture that is to be changed; None of other models."""
        if not self.inputs.task.changes:
            return None
        return np.array(self._each("images", "image_guidance_scale"), np.float32)

    def _each(self, topic: str, name: str) -> tuple[Any, ...]:
        value, count = getattr(getattr(self.arguments, topic), name), len(self.runs)
        if DECLARED[name].each == "prompt":
            return tuple(text for text in value for _ in range(self.arguments.batch.num_images))
        return tuple(spread(value, count, name))

    # ------------------------------------------------------------------ what follows from them

    @property
    def distilled(self) -> bool:
        """Whether the U-Net was told the guidance scale when it was trained, and needs no second half."""
        return self.spec.unet.time_cond_proj_dim is not None

    @property
    def stage(self) -> int:
        """Above 0 where this goes on from latents: a number for each place in the run.

        So no two parts of one draw the same noise.
        """
        cut = self.arguments.handoff.denoising_start
        return 0 if cut is None else max(1, round(1e6 * float(cut)))

    @property
    def evaluated(self) -> np.ndarray:
        """Rows of the plan in which the network runs, for one picture or more; int [n]."""
        return np.unique(np.concatenate([np.flatnonzero(plan.evaluate) for plan in self.plans]))

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
        """The branches that the network is asked, as many for each picture: those it lacks have no weight."""
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
        """Where each of the branches but the negative one counts, float32 [k, b, h, w, 1]; None is everywhere."""
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

    # ------------------------------------------------------------------ what makes it again

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `generate` that make the pictures again, and of the rarer ones those that were given."""
        told = self.arguments.settings()
        return told if self.refiner is None else told | self.refiner.request.arguments.sizes.settings()

    def alone(self, settings: Mapping[str, Any], i: int) -> dict[str, Any]:
        """Of the settings of all pictures, those that make picture i alone."""
        own = {
            "prompt": self.prompts[i],
            "negative_prompt": self.negative_prompts[i],
            "seed": self.seeds[i],
            "first_image": self.numbers[i],
            "num_images": 1,
        }
        second = [name for name in settings if DECLARED[name].each == "prompt" and name not in own]
        own |= {name: settings[name][i // settings["num_images"]] for name in second}
        mine = {name: value for name, value in {**settings, **own}.items() if name not in second or value is not None}
        return {name: value[i] if is_list(value) else value for name, value in mine.items()}


@dataclass(frozen=True, eq=False)
class Refinement:
    """What another model has to do with the latents of a request, and its networks."""

    networks: Networks
    request: Request

    def of(self, latents: Any) -> Request:
        """Its request, going on from these latents `b h w c`."""
        return replace(self.request, latents=np.asarray(latents))


def described(settings: Mapping[str, Any], count: int, *more: str) -> str:
    """Pictures in a few words: how many, how large, by which samplers and seeds, and the first prompt."""
    get = settings.get
    parts = [f"{count} picture{'' if count == 1 else 's'}", f"{get('width')}x{get('height')}", *more]
    parts += [cut(", ".join(map(str, unique(get("sampler"))))), f"seed {cut(str(get('seed')), 24)}"]
    prompts = unique(get("prompt"))
    return f"{', '.join(parts)}, {cut(repr(prompts[0]), 60)}{', ..' if len(prompts) > 1 else ''}"
