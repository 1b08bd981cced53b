"""Arguments of `generate`, checked one by one before anything is compiled or run.

Each takes what the caller gave and returns it in one form, or raises ValueError with the remedy.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import torch_noise
from sdjax.core.errors import unknown
from sdjax.core.jit import staged
from sdjax.core.limits import MOST_COUNT, MOST_PICTURES, MOST_PIXELS, MOST_SIDE
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.diffusion.bounds import as_float

MOST_PIXEL = 16.0  # far beyond [-1, 1], which a decoded picture may leave a little


def texts(value: str | Sequence[str], name: str) -> list[str]:
    """One string or a list of them, as a list. Raises ValueError for an empty list or an entry of another type."""
    if isinstance(value, str):
        return [value]
    if not is_list(value) and (isinstance(value, bytes) or not isinstance(value, Sequence)):
        raise ValueError(f"{name} must be a string or a list of strings, not {_told(value)}")
    listed = list(value.ravel().tolist() if isinstance(value, np.ndarray) else value)
    if not listed:
        raise ValueError(f'{name} is an empty list: give at least one string ("" is one)')
    for i, entry in enumerate(listed):
        if not isinstance(entry, str):
            raise ValueError(f"{name}[{i}] must be a string, not {_told(entry)}")
    return listed


def _told(value: Any) -> str:
    """A value of a wrong type in a message, with that type."""
    return f"{short(value)} (of type {type(value).__name__})"


def plain(value: Any, name: str) -> Any:
    """An array of numbers or texts, of NumPy's or jax's, as Python's own, and each of a list; else `value` as it is.

    Raises ValueError for a jax key, which is a seed and no number of another kind.
    """
    if isinstance(value, list | tuple):
        return type(value)(plain(one, name) for one in value) if type(value) in (list, tuple) else value
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name} is a jax key; seed= is what takes one")
        return np.asarray(value).tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def is_list(value: Any) -> bool:
    """Whether `value` is one entry per picture rather than one for all."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def spread(value: Any, count: int, name: str) -> list[Any]:
    """One value for all of `count` pictures, or a list of as many. Raises ValueError where the lengths differ."""
    if not is_list(value):
        return [value] * count
    if len(value) == 1:
        return list(value) * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} pictures; give one, or one per picture")
    return list(value)


def unique(value: Any) -> list[Any]:
    """One value, or those of a list, each once."""
    return list({str(one): one for one in (value if is_list(value) else [value])}.values())


def as_given(value: Any, column: list[Any]) -> Any:
    """The checked `column`, an entry per picture, as `value` came: a list, or one for all."""
    return column if is_list(value) else column[0]


def check_count(value: Any, least: int, name: str, most: int = MOST_COUNT) -> int:
    """A whole number from least to most. Raises ValueError."""
    if not is_number(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, not {short(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, not {short(value)}")
    return value


def check_pictures(prompts: int, each: int, first: int) -> int:
    """How many pictures so many of each prompt are, the first of them number `first`. Raises ValueError."""
    count = prompts * each
    if count > MOST_PICTURES:
        raise ValueError(
            f"{prompts} prompts with num_images={each} are {count:,} pictures, and a call makes at most "
            f"{MOST_PICTURES:,}: call several times, with first_image= or another seed="
        )
    if first + count > MOST_COUNT + 1:
        raise ValueError(
            f"first_image must be at most {MOST_COUNT + 1 - count:,} here, not {first}: take another seed="
        )
    return count


def check_pixels(count: int, height: int, width: int) -> None:
    """Raises ValueError for more pixels than a call makes, before any of them takes memory."""
    if count * height * width > MOST_PIXELS:
        raise ValueError(
            f"{count} pictures of {width} x {height} are {count * height * width:,} pixels, and a call makes at most "
            f"{MOST_PIXELS:,}: fewer or smaller pictures at once"
        )


def check_size(value: int | None, default: int, multiple: int, name: str) -> int:
    """Pixels along one side. Raises ValueError with the nearest sizes that do."""
    if value is None:
        return default
    number = is_number(value, int | float | np.integer)
    if number and value > MOST_SIDE:
        raise ValueError(f"{name} must be at most {MOST_SIDE:,} pixels, not {short(value)}")
    if not number:
        raise ValueError(f"{name} must be a whole number, a multiple of {multiple}, not {short(value)}")
    if isinstance(value, float) or value < multiple or value % multiple:
        below = max(multiple, int(value) // multiple * multiple) if value > 0 else default
        raise ValueError(
            f"{name} must be a multiple of {multiple}, not {short(value)}; the nearest are {below} and "
            f"{below + multiple}"
        )
    return int(value)


def check_source(value: Any) -> str:
    """Whose noise a seed means. Raises ValueError with the nearest."""
    if value not in torch_noise.SOURCES:
        raise ValueError(unknown(f"noise_source {short(value)} is unknown", value, torch_noise.SOURCES))
    return value


def check_scales(value: Any, count: int, name: str = "guidance_scale", least: float = 0.0) -> np.ndarray:
    """Guidance scales float32 [b]. Raises ValueError for one that is no finite number or below `least`."""
    scales = _numbers(value, count, name)
    if not np.isfinite(scales).all() or (scales < least).any():
        raise ValueError(f"{name} must be a finite number >= {least:g} (1 turns it off), not {short(value)}")
    return scales


def check_rescales(value: Any, count: int) -> np.ndarray:
    """Guidance rescales float32 [b]. Raises ValueError for one outside 0 to 1."""
    rescales = _numbers(value, count, "guidance_rescale")
    if not ((rescales >= 0) & (rescales <= 1)).all():
        raise ValueError(f"guidance_rescale must be a number from 0 (off) to 1, not {short(value)}")
    return rescales


def _numbers(value: Any, count: int, name: str) -> np.ndarray:
    """float32 [count]; NaN where an entry is no number, or one beyond a float; infinite where float32 has no room."""
    listed = spread(value, count, name)
    with np.errstate(over="ignore"):
        return np.array([as_float(one) for one in listed]).astype(np.float32)


def floats(value: Any, name: str) -> np.ndarray:
    """An array of numbers as float32. Raises ValueError for anything else, and for what is NaN or infinite."""
    try:
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError, np.exceptions.ComplexWarning):
        raise ValueError(f"{name} must be an array of numbers, not {type(value).__name__} {short(value)}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinite numbers")
    return array


def optional_texts(value: str | Sequence[str] | None, count: int, name: str) -> list[str | None]:
    """`texts` for `count` prompts, None where there is none. Raises ValueError."""
    if value is None:
        return [None] * count
    listed: list[Any] = list(value) if is_list(value) else texts(value, name)
    texts(["" if entry is None else entry for entry in listed], name)
    return list(spread(listed, count, name))


def check_options(value: Any, taken: Sequence[str]) -> dict[str, Any]:
    """A picture's `sampler_options`, in types that JSON knows. Raises ValueError.

    taken: names that no option has, since they are arguments of their own.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        told = short(value)
        raise ValueError(f"sampler_options must map options' names to values, as {{'s_churn': 20.0}}, not {told}")
    for name in taken:
        if name in value:
            raise ValueError(f"sampler_options holds {name!r}, which is no option of a sampler; see `generate`")
    try:
        return json.loads(json.dumps(dict(value), default=lambda array: array.tolist()))
    except (TypeError, AttributeError):
        raise ValueError(f"sampler_options must hold numbers, strings and lists of them, not {short(value)}") from None


def check_latents(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Given starting noise, unit Gaussian `b h w c`. Raises ValueError for another shape or a NaN."""
    if isinstance(value, str):
        raise ValueError("these settings are of a picture made from given noise: pass that array as latents=")
    latents = floats(value, "latents")
    if latents.shape != shape:
        raise ValueError(
            f"latents must be {list(shape)} (pictures, height and width in latents, channels last), not "
            f"{list(latents.shape)}{axes_remedy(latents.shape, shape[-1])}"
        )
    return latents


def on_device(value: Any, name: str) -> jax.Array:
    """Real numbers, traced ones too, as a float32 array of JAX's. Raises ValueError for anything else."""
    try:
        held = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
        array = jax.numpy.asarray(value) if held else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch's, of a tensor with gradients
        raise ValueError(f"{name} must be an array of numbers, not {short(value)}: {error}") from None
    if not any(jax.dtypes.issubdtype(array.dtype, kind) for kind in (np.integer, np.floating)):
        raise ValueError(f"{name} must be an array of real numbers, not {short(value)}")
    return jax.numpy.asarray(array, np.float32)


def pixels_on_device(value: Any) -> jax.Array:
    """Pixels as `on_device`. Raises ValueError for whole numbers, and for what the host holds of 0 .. 255."""
    pixels = on_device(value, "pixels")
    held = value if isinstance(value, jax.Array) else np.asarray(value)
    far = isinstance(held, np.ndarray) and held.size and np.abs(held).max() > MOST_PIXEL
    if far or jax.dtypes.issubdtype(held.dtype, np.integer):
        raise ValueError("pixels must be numbers in [-1, 1]; x / 127.5 - 1 makes them of 0 to 255")
    return pixels


def check_known(given: Iterable[tuple[str, Any]], function: str) -> None:
    """Raises ValueError for an argument that is traced, and inside of jit: `function` works on the host."""
    remedy = f"call {function} outside of jit, vmap and grad; sdjax.sample, sd.predict and sd.decode may be traced"
    for name, value in given:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise ValueError(f"{name} must be known before tracing: {remedy}")
    if staged():
        raise ValueError(f"{function} is no part of another program: {remedy}")


def check_axes(shape: Sequence[int], channels: int, name: str, axes: str = "b h w c") -> None:
    """Raises ValueError with the remedy unless a shape is `b h w c`, of so many channels c."""
    if len(shape) != 4 or shape[-1] != channels or 0 in shape:
        remedy = axes_remedy(shape, channels)
        raise ValueError(f"{name} must be {axes} with c = {channels}, got {tuple(shape)}{remedy}")


def axes_remedy(shape: Sequence[int], channels: int) -> str:
    """What makes `b h w c` of a shape in another order, or without b; "" where that cannot be told."""
    if len(shape) == 4 and shape[-1] != channels and shape[1] == channels:
        return ", which looks like b c h w: np.moveaxis(x, 1, -1) puts the channels last"
    if len(shape) == 3 and shape[-1] == channels:
        return ", one picture without the axis b: x[None] gives it one"
    if len(shape) == 3 and shape[0] == channels:
        return ", which looks like c h w: np.moveaxis(x, 0, -1)[None] puts the channels last"
    return ""


def check_times(shape: Sequence[int], count: int) -> None:
    """Raises ValueError unless timesteps are one number, or one for each of `count` pictures."""
    if tuple(shape) not in ((), (1,), (count,)):
        raise ValueError(f"t must be one timestep or one for each of the {count} pictures, not of shape {tuple(shape)}")


def check_context(context: Any, count: int, width: int, shared: bool = True) -> None:
    """Raises ValueError unless `context` is an array `b l d`, d being `width`, for `count` pictures.

    shared: whether one picture's may stand for all.
    """
    if isinstance(context, str) or (is_list(context) and len(context) and isinstance(context[0], str)):
        raise ValueError("context is text: what the U-Net attends to is sd.encode_prompt([...])")
    shape = np.shape(context)
    if len(shape) != 3 or shape[-1] != width:
        raise ValueError(
            f"context must be b l d with d = {width}, as sd.encode_prompt([...]) of this model gives it, not of shape "
            f"{tuple(shape)}"
        )
    if shape[0] != count and not (shared and shape[0] == 1):
        raise ValueError(f"context is for {shape[0]} pictures and x_t holds {count}; give as many prompts")
