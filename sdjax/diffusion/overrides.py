"""What the caller of `plan` chose over a checkpoint's scheduler config, checked before anything is made of it."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from sdjax.core.short import short
from sdjax.diffusion.a1111_comfy import check_preset, discards, peer_name
from sdjax.diffusion.bounds import LEAST_NOISE, MOST_NOISE, MOST_STEPS, as_float, check_whole
from sdjax.diffusion.noise import Settings, said
from sdjax.diffusion.sigmas import check_rho
from sdjax.diffusion.spacing import FLAGS, SPACINGS, check_schedule, schedule_name

# Keys of the config that a preset of another program, or a schedule of the caller's own, puts out of force.
FLAG_KEYS = frozenset(FLAGS.values())
# What a config may ask of the levels, and of the bound on D, that not every class reads; see `dropped`.
LEVEL_KEYS = (*FLAGS.values(), "timestep_spacing", "final_sigmas_type", "sigma_min", "sigma_max", "interpolation_type")
BOUND_KEYS = ("thresholding", "clip_sample", "lambda_min_clipped", "variance_type")
UNREAD = {"timestep_spacing": "linspace"}  # what a class does that has no such key, where it is not the default
# The least distance of two levels of one's own: of sigmas as a share of them, what float32 tells apart.
NEAREST, NEAREST_TIMESTEPS = 1e-6, 1e-3
SPACING_KEYS = FLAG_KEYS | {"timestep_spacing", "steps_offset", "sigma_min", "sigma_max", "final_sigmas_type"}


def keys_in_force(reads: Set[str], preset: str, own: bool) -> frozenset[str]:
    """Of the keys that a scheduler's class reads, those to read; `own`: the caller gave a schedule."""
    if check_preset(preset) != "diffusers":
        return frozenset(reads - SPACING_KEYS)
    return frozenset(reads - FLAG_KEYS if own else reads)


def dropped(config: Mapping[str, Any], sampler: str, reads: Set[str], own: bool) -> str:
    """What a config asks of the levels, or of the bound on D, that the sampler's class does not read: words, or "".

    own: the caller gave a schedule or a preset, which put the config's levels out of force. Options of a solver are
    not meant: the caller named the solver.
    """
    told, default = said(config), vars(Settings())
    asked = [key for key in (BOUND_KEYS if own else (*LEVEL_KEYS, *BOUND_KEYS)) if key in told and key not in reads]
    active = {key: told[key] for key in asked if told[key] != UNREAD.get(key, default[key])}
    if not active:
        return ""
    schedule = next((name for name, flag in FLAGS.items() if flag in active), active.get("timestep_spacing"))
    remedy = f"; schedule={short(schedule)} chooses it" if schedule else ""
    text = " and ".join(f"{key}={short(value)}" for key, value in active.items())
    return f"the scheduler config says {text}, which sampler {sampler} does not read{remedy}"


def choose(
    settings: Settings,
    sampler: str,
    schedule: str | None = None,
    preset: str = "diffusers",
    rho: float | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> Settings:
    """The settings with these choices; see `plan`.

    Raises:
      ValueError: an unknown name, levels that do not fall, or choices that exclude each other.
    """
    given = [k for k, v in (("schedule", schedule), ("sigmas", sigmas), ("timesteps", timesteps)) if v is not None]
    if len(given) > 1:
        raise ValueError(f"give one of {' and '.join(given)}, not both")
    settings = replace(
        settings,
        preset=check_preset(preset),
        sigmas=None if sigmas is None else check_sigmas(sigmas),
        timesteps=None if timesteps is None else check_timesteps(timesteps, settings.num_train_timesteps),
    )
    if preset != "diffusers" and sigmas is None and timesteps is None:
        name = peer_name(preset, sampler, schedule)
        settings = replace(settings, schedule=name, discard_penultimate_sigma=discards(preset, sampler, name))
    elif schedule is not None:
        settings = replace(settings, schedule=check_schedule(schedule))
        settings = replace(settings, timestep_spacing=schedule) if schedule in SPACINGS else settings
    if settings.timestep_spacing not in SPACINGS:
        known = ", ".join(SPACINGS)
        raise ValueError(f"timestep_spacing {settings.timestep_spacing!r} is unknown; known: {known}")
    return replace(settings, rho=check_rho(schedule_name(settings), rho))


def count_steps(settings: Settings, steps: Any) -> int:
    """The number of steps: `steps`, 1 .. T, or how many the caller's own levels make, which `steps` may say or not.

    Raises:
      ValueError: `steps` is out of range, or differs from the number of levels given.
    """
    given = None
    if settings.sigmas is not None:
        given = len(settings.sigmas) - 1
    elif settings.timesteps is not None:
        given = len(settings.timesteps)
    if given is not None:
        if steps is not None and (isinstance(steps, bool) or steps != given):
            raise ValueError(f"the levels given make {given} steps, not {short(steps)}; leave steps at None")
        return given
    total = settings.num_train_timesteps
    return check_whole("steps", steps, 1, min(total, MOST_STEPS))


def check_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Two or more decreasing numbers within `bounds`' noise, of which the last may be 0; otherwise ValueError."""
    values = _numbers(sigmas, "sigmas")
    if len(values) < 2:
        raise ValueError(f"sigmas must hold 2 levels or more, the first and the last of the run, not {values}")
    if not all(a > b for a, b in pairwise(values)) or values[-1] < 0:
        raise ValueError(f"sigmas must decrease from level to level and end at 0 or above, not {short(values)}")
    least = values[-1] or values[-2]
    if values[0] > MOST_NOISE or least < LEAST_NOISE:
        which = values[0] if values[0] > MOST_NOISE else least
        raise ValueError(
            f"sigmas must lie from {LEAST_NOISE:g} to {MOST_NOISE:g}, but for a last 0, not {which:g}: a network is "
            "trained from 0.03 to 15 or so"
        )
    near = [(a, b) for a, b in pairwise(values) if a - b < NEAREST * a]
    if near:
        raise ValueError(f"sigmas {near[0][0]!r} and {near[0][1]!r} are one level to float32; leave one of them out")
    return values


def check_timesteps(timesteps: Sequence[float], total: int) -> tuple[float, ...]:
    """One or more decreasing numbers in 0 .. T - 1; otherwise ValueError."""
    values = _numbers(timesteps, "timesteps")
    if not values or not total - 1 >= values[0] or not values[-1] >= 0:
        raise ValueError(f"timesteps must lie in 0 .. {total - 1}, not {short(values)}")
    if not all(a - b >= NEAREST_TIMESTEPS for a, b in pairwise(values)):
        raise ValueError(
            f"timesteps must decrease from level to level, by {NEAREST_TIMESTEPS:g} or more, not {short(values)}"
        )
    return values


def _numbers(values: Any, name: str) -> tuple[float, ...]:
    """A list, tuple or array [n] of at most `MOST_STEPS` + 1 finite numbers, as floats; otherwise ValueError."""
    if not isinstance(values, list | tuple | range) and getattr(values, "ndim", 0) != 1:
        raise ValueError(f"{name} must be a list of finite numbers, not {short(values)}")
    listed = [as_float(value) for value in (values if isinstance(values, list | tuple | range) else np.asarray(values))]
    if len(listed) > MOST_STEPS + 1:
        raise ValueError(f"{name} holds {len(listed)} levels; a run takes {MOST_STEPS} steps at most")
    if not all(map(math.isfinite, listed)):
        wrong = next(value for value, number in zip(values, listed, strict=True) if not math.isfinite(number))
        raise ValueError(f"{name} must be a list of finite numbers, and holds {short(wrong)}")
    return tuple(listed)
