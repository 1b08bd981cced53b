"""Settings as the text that other tools write into pictures, and back.

    a red circle
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 0, Size: 512x512, ...

AUTOMATIC1111's web UI began it [1]; Forge, SD.Next, galleries and others took it over. It is data from strangers: it
is parsed by a pattern, and nothing of it is ever run. A sampler or schedule that those tools lack goes by our name.

A text of another tool also says how its prompt is meant and whose noise its seed is: A1111's, on a GPU unless it says
`RNG: CPU`. What cannot be told from it (a Brownian tree's own seeds, `ENSD`) makes another picture.

[1] https://github.com/AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py; its names of
samplers and schedules are in `diffusion.names`
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import sdjax
from sdjax.diffusion.names import ALSO, SAMPLERS, SCHEDULES, SDE_HEUN, a1111_sampler, ours
from sdjax.diffusion.peers import A1111, OWN_TIMESTEPS

RNG = {"torch_cpu": "CPU", "torch_cuda": "NV"}  # "GPU" is its default, and what "NV" computes on any machine
OURS = "sdjax "  # begins our Version
SIGMAS = {"s_churn": "Sigma churn", "s_tmin": "Sigma tmin", "s_tmax": "Sigma tmax", "s_noise": "Sigma noise"}

# `word: value` or `word: "quoted, value"` between commas. The bound keeps the search linear in the text.
_FIELD = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_FEWEST_FIELDS = 3  # a last line with less is part of the prompt


def write(settings: Mapping[str, Any], model: str) -> str:
    """One picture's settings as text: prompt, negative prompt unless empty, one line of fields."""
    get, options = settings.get, dict(settings.get("sampler_options") or {})
    heun = get("sampler") == "dpmpp_2m_sde" and options.get("solver_type") == "heun"
    schedule = get("guidance_schedule")
    fields = {
        "Steps": settings["steps"],
        "Sampler": SDE_HEUN if heun else SAMPLERS.get(settings["sampler"], settings["sampler"]),
        "Schedule type": SCHEDULES.get(settings["schedule"], settings["schedule"]),
        "CFG scale": _short(settings["guidance_scale"]),
        "CFG rescale": _short(get("guidance_rescale") or None),
        "Guidance schedule": None if schedule == "constant" else schedule,
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Denoising strength": _short(get("strength")),
        "Mask blur": get("mask_blur"),
        "Image CFG scale": _short(get("image_guidance_scale")),
        "Model": model,
        "Prompt style": get("prompt_style"),
        "Clip skip": (get("clip_skip") or "").removeprefix("a1111:") or None,
        "RNG": RNG.get(get("noise_source") or "jax"),
        "Refiner": get("refiner"),
        "Refiner switch at": get("refiner_start"),
        "Eta DDIM" if settings["sampler"] == "ddim" else "Eta": _short(get("eta")),
        **{theirs: options.get(ours) for ours, theirs in SIGMAS.items()},
        "Version": f"{OURS}{sdjax.__version__}",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items() if value is not None)
    negative = [f"Negative prompt: {settings['negative_prompt']}"] if settings["negative_prompt"] else []
    text = "\n".join([settings["prompt"], *negative, line])
    return text.encode("utf-8", "replace").decode()  # a shell hands on bytes that are no UTF-8 as lone surrogates


def read(text: str) -> dict[str, Any]:
    """The arguments of `generate` that a text holds.

    Fields we have no word for are left out, and so is the denoising strength, which belongs to a picture that no text
    holds and may be of a second pass of theirs. A sampler or schedule we do not know keeps its name for
    `generate` to judge. Raises ValueError.
    """
    *lines, last = text.strip().split("\n")
    fields = {name: _unquoted(value.strip()) for name, value in _FIELD.findall(last)}
    if len(fields) < _FEWEST_FIELDS:
        lines, fields = [*lines, last], {}
    starts = [i for i, line in enumerate(lines) if line.startswith("Negative prompt:")]
    cut = starts[0] if starts else len(lines)
    settings: dict[str, Any] = {"prompt": "\n".join(lines[:cut]).strip()}
    if negative := "\n".join(lines[cut:]).removeprefix("Negative prompt:").strip():
        settings["negative_prompt"] = negative
    for name, read_field in _READERS.items():
        if name in fields:
            try:
                found = read_field(fields[name])
            except ValueError:
                raise ValueError(f"{name}: {fields[name][:40]!r} cannot be understood") from None
            if "sampler_options" in found:
                found["sampler_options"] = {**settings.get("sampler_options", {}), **found["sampler_options"]}
            settings |= found
    return settings if not fields or fields.get("Version", "").startswith(OURS) else _as_theirs(settings)


def _as_theirs(settings: dict[str, Any]) -> dict[str, Any]:
    """With A1111's conventions for prompts, noise and, where its samplers walk k-diffusion's sigmas, levels."""
    usual: dict[str, Any] = {"prompt_style": "a1111", "noise_source": "torch_cuda"}
    sampler, schedule = settings.get("sampler"), settings.get("schedule")
    if sampler in SAMPLERS and sampler not in OWN_TIMESTEPS and schedule in (None, *A1111):
        usual["preset"] = "a1111"
    return usual | settings


def _clip_skip(text: str) -> dict[str, Any]:
    return {"clip_skip": text if ":" in text else f"a1111:{int(text)}"}


def _rng(text: str) -> dict[str, Any]:
    return {"noise_source": "torch_cpu" if text == "CPU" else "torch_cuda"}


def _schedule(text: str) -> dict[str, Any]:
    """Automatic is whatever their sampler likes best, and no schedule of ours."""
    return {} if text == "Automatic" else {"schedule": ALSO.get(text) or ours(SCHEDULES, text)}


def _size(text: str) -> dict[str, Any]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _number(name: str) -> Callable[[str], dict[str, Any]]:
    def read_number(text: str) -> dict[str, Any]:
        if not math.isfinite(value := float(text)):
            raise ValueError
        return {name: value}

    return read_number


def _option(name: str) -> Callable[[str], dict[str, Any]]:
    read_number = _number(name)
    return lambda text: {"sampler_options": read_number(text)}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": lambda text: {"steps": int(text)},
    "Sampler": a1111_sampler,
    "Schedule type": _schedule,
    "CFG scale": _number("guidance_scale"),
    "CFG rescale": _number("guidance_rescale"),
    "Guidance schedule": lambda text: {"guidance_schedule": text},
    "Seed": lambda text: {"seed": int(text)},
    "Size": _size,
    "Prompt style": lambda text: {"prompt_style": text},
    "Clip skip": _clip_skip,
    "RNG": _rng,
    "Eta": _number("eta"),
    "Eta DDIM": _number("eta"),
    **{theirs: _option(ours) for ours, theirs in SIGMAS.items()},
}


def _quoted(value: str) -> str:
    """A1111's rule: as JSON where the value would be taken for more than one field."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _short(number: float | None) -> str | None:
    """7.0 as 7, as people write it, and the float32 nearest to 7.3 as 7.3."""
    return None if number is None else str(np.float32(number)).removesuffix(".0")
