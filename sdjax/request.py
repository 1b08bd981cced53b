"""What a call of `generate` asks for, checked and brought to one form before anything is compiled or run."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from sdjax import torch_noise
from sdjax.conditions import ClipSkip, Part
from sdjax.diffusion.guidance import Guidance, GuidanceSchedule
from sdjax.diffusion.lanes import Lanes, stack_plans
from sdjax.diffusion.plan import Plan
from sdjax.micro import MicroConditions

# Arguments that are texts, one per prompt.
SECOND = ("prompt_2", "negative_prompt_2")
TEXTS = ("prompt", "negative_prompt", *SECOND)
# What makes a plan: the arguments that may be one value, or a list with one per picture.
PLANNING = ("sampler", "steps", "schedule", "preset", "eta", "sampler_options")
# Arguments that the settings name where they are not as usual.
USUAL = {"noise_source": "jax", "prompt_style": "plain", "denoising_start": None, "denoising_end": None}
# No names for an entry of `sampler_options`: these have an argument of their own.
TAKEN = ("self", "scheduler", *PLANNING[:-1], "denoising_start", "denoising_end")


@dataclass(frozen=True, eq=False)
class Request:
    """b pictures to make, one entry per picture in each list."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]
    parts: tuple[tuple[Part, ...], ...]  # the negative prompt's, then the prompt's
    style: str  # how prompts are read
    clip_skip: ClipSkip
    micro: MicroConditions
    time_ids: tuple[np.ndarray, np.ndarray] | None  # SDXL's numbers (negative, positive), `b i` each
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]  # each picture's number under its seed
    guidance_scales: np.ndarray  # float32 [b]
    guidance_schedules: tuple[GuidanceSchedule, ...]
    guidance_rescales: np.ndarray  # float32 [b]
    height: int
    width: int
    plans: tuple[Plan, ...]  # the same object for pictures with the same settings
    latents: np.ndarray | None  # float32 [b, h, w, c], given: starting noise, or where a run goes on from
    noise_source: str = "jax"
    distilled: bool = False  # the U-Net was told the guidance scale when it was trained, and needs no second half
    stage: int = 0  # 1 where this is the refiner's share of a run
    drawn: int = 0  # draws of the stage before

    @cached_property
    def plan(self) -> Plan | Lanes:
        """One plan for all pictures, or one for each."""
        return self.plans[0] if len(set(map(id, self.plans))) == 1 else stack_plans(self.plans)

    @property
    def guided(self) -> bool:
        """Whether any picture needs the network's answer without its prompt (a guidance scale above 1)."""
        joined = any(len(own) != 2 or own[1].share != 1 for own in self.parts)
        return not self.distilled and (joined or bool((self.guidance_scales > 1).any()))

    @property
    def pulls(self) -> list[list[Part]]:
        """The parts that the network has to answer for, as many for each picture: those it lacks have no share."""
        if not self.guided:
            return [[own[1]] for own in self.parts]
        most = max(map(len, self.parts))
        return [[*own, *[replace(own[1], share=0.0)] * (most - len(own))] for own in self.parts]

    def guidance(self, length: int) -> Guidance | None:
        """Guidance along the plan's table of that length; None where no picture has any."""
        if not self.guided:
            return None
        # A scale below 1 is no guidance, whatever the neighbours have.
        scales = np.maximum(self.guidance_scales, 1)
        shares = np.array([[part.share for part in own[1:]] for own in self.pulls], np.float32).T
        joined = None if len(shares) == 1 and (shares == 1).all() else shares
        return Guidance.along(self.plan, scales, self.guidance_schedules, self.guidance_rescales, length, shares=joined)

    def noise(self, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Starting noise [b, h, w, c] and draws [draws, b, h, w, c] as torch gives them; None where jax does."""
        if self.noise_source == "jax":
            return None
        made = [
            torch_noise.picture_noise(self.noise_source, seed, number, shape, self.drawn + self.plan.draws)
            for seed, number in zip(self.seeds, self.numbers, strict=True)
        ]
        return np.stack([start for start, _ in made]), np.stack([draws[self.drawn :] for _, draws in made], 1)

    def keys(self) -> jax.Array:
        """One key per picture: fold_in(key(seed), number); of a second stage, that folded once more."""
        keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
            np.asarray(self.seeds, np.uint32), np.asarray(self.numbers, np.uint32)
        )
        return jax.vmap(partial(jax.random.fold_in, data=self.stage))(keys) if self.stage else keys

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


def optional_texts(value: str | Sequence[str] | None, count: int, name: str) -> list[str | None]:
    """`texts` for `count` prompts, None where there is none. Raises ValueError."""
    listed: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    texts(["" if entry is None else entry for entry in listed], name)
    return list(spread(listed, count, name))


def settings(given: Mapping[str, Any], asked: Request, refined: Request | None = None) -> dict[str, Any]:
    """The arguments of `generate` that make the pictures again, and of the rarer ones those that were given.

    asked: of the model; refined: of its refiner, which goes by its name.
    """
    each = given["num_images"]
    made = {
        "prompt": list(asked.prompts[::each]),
        "negative_prompt": list(asked.negative_prompts[::each]),
        **planning_settings(given, asked.plans),
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
    if given["clip_skip"] is not None:
        made["clip_skip"] = str(asked.clip_skip)
    made |= asked.micro.settings()
    if refined is not None:
        made |= {"refiner": given["refiner"].name, "refiner_start": given["refiner_start"]} | refined.micro.settings()
    return {**made, **({} if given["latents"] is None else {"latents": "given"})}


def texts(value: str | Sequence[str], name: str) -> list[str]:
    """One string or a list of them, as a list. Raises ValueError for an empty list or an entry of another type."""
    if isinstance(value, str):
        return [value]
    listed = list(value) if isinstance(value, Sequence) else [value]
    if not listed:
        raise ValueError(f'{name} is an empty list: give at least one string ("" is one)')
    for i, entry in enumerate(listed):
        if not isinstance(entry, str):
            raise ValueError(f"{name}[{i}] is {entry!r}, a {type(entry).__name__}; it must be a string")
    return listed


def is_list(value: Any) -> bool:
    """Whether `value` is one entry per picture rather than one for all."""
    return isinstance(value, list | tuple | np.ndarray)


def spread(value: Any, count: int, name: str) -> list[Any]:
    """One value for all of `count` pictures, or a list of as many. Raises ValueError where the lengths differ."""
    if not is_list(value):
        return [value] * count
    if len(value) == 1:
        return list(value) * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} pictures; give one, or one per picture")
    return list(value)


def as_given(value: Any, column: list[Any]) -> Any:
    """The checked `column`, an entry per picture, as `value` came: a list, or one for all."""
    return column if is_list(value) else column[0]


def check_count(value: Any, least: int, name: str) -> int:
    """A whole number >= least. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, not {value!r}")
    return value


def check_size(value: int | None, default: int, multiple: int, name: str) -> int:
    """Pixels along one side. Raises ValueError with the nearest sizes that do."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < multiple or value % multiple:
        usable = isinstance(value, int | float | np.integer) and value > 0
        below = max(multiple, int(value) // multiple * multiple) if usable else default
        raise ValueError(
            f"{name} must be a multiple of {multiple}, not {value!r}; the nearest are {below} and {below + multiple}"
        )
    return int(value)


def check_seeds(value: Any, count: int, bits: int = 32) -> list[int]:
    """One seed for all pictures, or one each; 0 to 2^bits - 1. Raises ValueError."""
    seeds = spread(value, count, "seed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**bits:
            raise ValueError(f"seed must be a whole number from 0 to {2**bits - 1}, not {seed!r}")
    return [int(seed) for seed in seeds]


def check_source(value: Any) -> str:
    """Whose noise a seed means. Raises ValueError with the nearest."""
    if value not in torch_noise.SOURCES:
        near = difflib.get_close_matches(str(value), torch_noise.SOURCES, n=1, cutoff=0.0)[0]
        known = ", ".join(torch_noise.SOURCES)
        raise ValueError(f"noise_source {value!r} is unknown; nearest: {near!r}; known: {known}")
    return value


def check_scales(value: Any, count: int) -> np.ndarray:
    """Guidance scales float32 [b]. Raises ValueError for one that is no finite number or below 0."""
    scales = _numbers(value, count, "guidance_scale")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"guidance_scale must be a finite number >= 0 (1 turns guidance off), not {value!r}")
    return scales


def check_rescales(value: Any, count: int) -> np.ndarray:
    """Guidance rescales float32 [b]. Raises ValueError for one outside 0 to 1."""
    rescales = _numbers(value, count, "guidance_rescale")
    if not ((rescales >= 0) & (rescales <= 1)).all():
        raise ValueError(f"guidance_rescale must be a number from 0 (off) to 1, not {value!r}")
    return rescales


def _numbers(value: Any, count: int, name: str) -> np.ndarray:
    """float32 [count]; NaN where an entry is no number."""
    listed = spread(value, count, name)
    usable = [isinstance(one, int | float | np.number) and not isinstance(one, bool) for one in listed]
    return np.array([one if ok else np.nan for one, ok in zip(listed, usable, strict=True)], np.float32)


def check_plans(make: Callable[..., Plan], arguments: Mapping[str, Any], count: int) -> tuple[Plan, ...]:
    """A plan per picture: make(sampler, steps, schedule, **options), called once for equal settings.

    arguments: those named in `PLANNING`, each one value or a list. Raises ValueError.
    """
    columns = [spread(arguments[name], count, name) for name in PLANNING]
    made: dict[str, Plan] = {}
    plans = []
    for sampler, steps, schedule, preset, eta, given in zip(*columns, strict=True):
        options = {**check_options(given), **{k: v for k, v in (("preset", preset), ("eta", eta)) if v is not None}}
        key = repr((sampler, steps, schedule, sorted(options.items())))
        if key not in made:
            made[key] = make(sampler, steps, schedule, **options)
        plans.append(made[key])
    return tuple(plans)


def planning_settings(arguments: Mapping[str, Any], plans: Sequence[Plan]) -> dict[str, Any]:
    """The arguments of `check_plans` as settings: a list where a list was given, one value where not."""
    columns = {name: spread(arguments[name], len(plans), name) for name in PLANNING}
    columns |= {"sampler": [plan.sampler for plan in plans], "steps": [plan.steps for plan in plans]}
    columns["sampler_options"] = [check_options(given) or None for given in columns["sampler_options"]]
    return {name: as_given(arguments[name], column) for name, column in columns.items()}


def check_options(value: Any) -> dict[str, Any]:
    """A picture's `sampler_options`, in types that JSON knows. Raises ValueError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"sampler_options must map options' names to values, as {{'s_churn': 20.0}}, not {value!r}")
    for name in TAKEN:
        if name in value:
            raise ValueError(f"sampler_options holds {name!r}, which is no option of a sampler; see `generate`")
    try:
        return json.loads(json.dumps(dict(value), default=lambda array: array.tolist()))
    except (TypeError, AttributeError):
        raise ValueError(f"sampler_options must hold numbers, strings and lists of them, not {value!r}") from None


def check_latents(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Given starting noise, unit Gaussian `b h w c`. Raises ValueError for another shape or a NaN."""
    if isinstance(value, str):
        raise ValueError("these settings are of a picture made from given noise: pass that array as latents=")
    latents = np.asarray(value, np.float32)
    if latents.shape != shape:
        raise ValueError(
            f"latents must be {list(shape)} (pictures, height and width in latents, channels last), not "
            f"{list(latents.shape)}"
        )
    if not np.isfinite(latents).all():
        raise ValueError("latents hold NaN or infinite numbers")
    return latents
