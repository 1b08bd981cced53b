"""What a call of `generate` asks for, checked and brought to one form before anything is compiled or run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdjax.diffusion.plan import Plan


@dataclass(frozen=True, eq=False)
class Request:
    """b pictures to make, one entry per picture in each list."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]  # each picture's number under its seed
    guidance_scales: np.ndarray  # float32 [b]
    height: int
    width: int
    plan: Plan
    latents: np.ndarray | None  # float32 [b, h, w, c], given starting noise

    @property
    def guided(self) -> bool:
        """Whether any picture needs the network's answer without its prompt (a guidance scale above 1)."""
        return bool((self.guidance_scales > 1).any())

    def keys(self) -> jax.Array:
        """One key per picture: fold_in(key(seed), number)."""
        return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
            np.asarray(self.seeds, np.uint32), np.asarray(self.numbers, np.uint32)
        )


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


def check_seeds(value: Any, count: int) -> list[int]:
    """One seed for all pictures, or one each; 0 to 2^32 - 1. Raises ValueError."""
    seeds = spread(value, count, "seed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be a whole number from 0 to 4294967295, not {seed!r}")
    return [int(seed) for seed in seeds]


def check_scales(value: Any, count: int) -> np.ndarray:
    """Guidance scales float32 [b]. Raises ValueError for one that is no finite number or below 0."""
    scales = np.asarray(spread(value, count, "guidance_scale"), np.float32)
    if scales.shape != (count,) or not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"guidance_scale must be a finite number >= 0 (1 turns guidance off), not {value!r}")
    return scales


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
