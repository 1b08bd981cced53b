"""Settings as the text that other tools write into pictures, and back.

    a red circle
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 0, Size: 512x512, ...

AUTOMATIC1111's web UI began it [1]; Forge, SD.Next, galleries and others took it over. It is data from strangers: it
is parsed by a pattern, and nothing of it is ever run. A sampler or schedule that those tools lack goes by our name.

Extensions add lines behind the fields ("Template: ..."), so these are looked for wherever they stand; and fields of
their own among them, which are named in a note where they change the picture. Letters may be large or small. Galleries
join the lines by spaces, or break the last one behind its commas: both are read.

A text of another tool also says how its prompt is meant and whose noise its seed is, by its `Version`:

    A1111, Forge    A1111's words and levels, noise of a GPU unless it says `RNG: CPU`. Before 1.9 a sampler had the
                    levels that its name says, else evenly spaced ones; since then "Automatic" goes by the sampler
    ComfyUI         (by its nodes that write this text) ComfyUI's words, levels and noise; so has Fooocus
    SD.Next         (App: SD.Next) A1111's words, diffusers' levels

What cannot be told from it (a Brownian tree's own seeds, `ENSD`) makes another picture.

[1] https://github.com/AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py; names are in `diffusion.names`
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.core.version import VERSION
from sdjax.diffusion.a1111_comfy import A1111, AUTOMATIC, NAMES, OWN_TIMESTEPS
from sdjax.diffusion.names import SAMPLERS, SCHEDULES, SDE_HEUN, schedule_here
from sdjax.metadata.foreign import fooocus, names, swarmui
from sdjax.metadata.foreign.fields import Found, not_done

RNG = {"torch_cpu": "CPU", "torch_cuda": "NV"}  # "GPU" is its default, and what "NV" computes on any machine
OURS = "sdjax "  # begins our Version
SIGMAS = {"s_churn": "Sigma churn", "s_tmin": "Sigma tmin", "s_tmax": "Sigma tmax", "s_noise": "Sigma noise"}

# `word: value`, `word: "quoted, value"` or `word: 7,5` between commas. The bound keeps the search linear in the text.
_FIELD = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])*"|\d+,\d+(?=\s*(?:,|$))|[^,]*)(?:,|$)')
_FEWEST_FIELDS = 3  # a line with less is part of the prompt
_BROKEN = 20  # lines over which they may be broken, when they are looked for
# Where the fields begin in a line that begins with words; another pass has steps of its own.
_STEPS = re.compile(r"(?<!hires )(?<!refiner )\bsteps:\s*\d+\s*,", re.IGNORECASE)
_NEGATIVE = "negative prompt:"
_CIVITAI = "Civitai resources:"
_VERSION = re.compile(r"(?:^|v)(\d{1,4})\.(\d{1,4})")  # Forge's is "f2.0.1v1.10.1-previous-..."
_SCHEDULES_SINCE = (1, 9)  # A1111's version from which a schedule is a field of its own
_LATER = ("f2", "neo", "classic")  # begin versions of Forge's kin without A1111's number
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")

# Fields that change the picture and are not done here: whole names, and how names begin.
_NOT_DONE = {
    "variation seed", "variation seed strength", "seed resize from", "face restoration", "tiling", "ensd", "ngms",
    "eta noise seed delta", "skip early cfg", "token merging ratio", "sgm noise multiplier", "noise multiplier",
    "schedule max sigma", "schedule min sigma", "discard penultimate sigma", "noise schedule", "distilled cfg scale",
    "shift", "beta schedule alpha", "beta schedule beta", "old prompt editing timelines", "hypernet", "upscaler",
    "use old emphasis implementation", "downcast alphas_cumprod", "styles", "ti hashes", "lora weights",
    "conditional mask weight", "image cfg scale", "unipc order", "unipc variant", "unipc skip type", "sharpness",
    "variation strength", "lora networks", "prompt2", "negative2", "cfg end", "cfg start", "tome", "todo", "embeddings",
    "sampler timesteps", "sampler spacing", "sampler order", "sampler type", "sampler beta schedule",
    "sampler low order", "sampler dynamic", "sampler rescale", "sampler beta start", "sampler beta end",
    "sampler range", "sampler shift", "sampler dynamic shift", "sampler eta delta", "sampler eta multiplier",
}  # fmt: skip
_NOT_DONE_BEGIN = (
    "controlnet", "adetailer", "freeu", "tiled diffusion", "rp ", "soft inpainting", "dynamic thresholding", "dynthres",
    "hypertile", "kohya", "addnet", "postprocess", "mimic", "self-attention guidance", "sag ", "pag ", "perturbed",
    "stylealign", "layerdiffusion", "latent modifier", "latent couple", "cutoff", "cfg rescale phi", "ultimate sd",
)  # fmt: skip
_OFF = ("", "false", "none", "0", "0.0", "0x0")


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
        "Lora hashes": _hashes(get("adapters")),
        "Adapters": get("adapters"),
        "Refiner": get("refiner"),
        "Refiner switch at": get("refiner_start"),
        "Eta DDIM" if settings["sampler"] == "ddim" else "Eta": _short(get("eta")),
        **{theirs: options.get(ours) for ours, theirs in SIGMAS.items()},
        "Version": f"{OURS}{VERSION}",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items() if value is not None)
    negative = [f"Negative prompt: {settings['negative_prompt']}"] if settings["negative_prompt"] else []
    text = "\n".join([settings["prompt"], *negative, line])
    return text.encode("utf-8", "replace").decode()  # a shell hands on bytes that are no UTF-8 as lone surrogates


def read(text: str) -> Found:
    """The arguments of `generate` that a text holds, and what of it makes another picture.

    The denoising strength is left out, since it belongs to a picture that no text holds, or to a second pass of
    theirs. A sampler or schedule we do not know keeps its name for `generate` to judge. Raises ValueError.
    """
    told, fields = _told_and_fields(text)
    starts = [i for i, line in enumerate(told) if _is_negative(line)]
    cut = starts[0] if starts else len(told)
    settings: dict[str, Any] = {"prompt": "\n".join(told[:cut]).strip()}
    if negative := "\n".join(told[cut:]).strip()[len(_NEGATIVE) :].strip():
        settings["negative_prompt"] = negative
    settings |= _read_fields(fields)
    if not fields or fields.get("version", "").startswith(OURS):
        return Found(settings)
    return _as_theirs(settings, fields)


def has_fields(text: str) -> bool:
    """Whether a text is settings at all, with the steps among its fields."""
    return "steps" in _told_and_fields(text)[1]


def _told_and_fields(text: str) -> tuple[list[str], dict[str, str]]:
    """The lines of the prompts, and the fields by name in small letters."""
    lines = re.sub(r"\r\n?", "\n", text).strip().split("\n")
    at = _settings_line(lines)
    if at is None:
        return lines, {}
    begin = _begin(lines[at])
    words = re.split(rf"\s+(?={_NEGATIVE})", lines[at][:begin].strip(), maxsplit=1, flags=re.IGNORECASE)
    return [*lines[:at], *filter(None, words)], _fields(_unbroken([lines[at][begin:], *lines[at + 1 :]]))


def _settings_line(lines: Sequence[str]) -> int | None:
    """Which line holds the fields: the last that begins with the steps, else that has them, else the last of all."""
    maybe = [i for i, line in enumerate(lines) if "steps:" in line.casefold()]
    having = [i for i in maybe if _has_steps(_unbroken(lines[i : i + _BROKEN]))]
    begun = [i for i in having if lines[i].lstrip().casefold().startswith("steps:")]
    found = begun or [i for i in having if not _is_negative(lines[i])] or having
    if found:
        return found[-1]
    return len(lines) - 1 if len(_FIELD.findall(lines[-1])) >= _FEWEST_FIELDS and not _is_negative(lines[-1]) else None


def _has_steps(line: str) -> bool:
    """Whether the steps are among a line's fields; one that begins with other words needs a sampler or a seed, too."""
    begin = _begin(line)
    named = [name.strip().casefold() for name, _ in _FIELD.findall(line, begin)]
    return len(named) >= _FEWEST_FIELDS and "steps" in named and (not begin or bool({"sampler", "seed"} & {*named}))


def _begin(line: str) -> int:
    """Where a line's fields begin: at its start if that is a field's name, else at its steps."""
    first = _FIELD.match(line.lstrip())
    if first and first[1].strip().casefold() in _NAMES:
        return 0
    steps = _STEPS.search(line)
    return steps.start() if steps else 0


def _is_negative(line: str) -> bool:
    return line.lstrip().casefold().startswith(_NEGATIVE)


def _unbroken(lines: Sequence[str]) -> str:
    """The first line, with those that belong to it: within quotes that it opens, or behind a comma at its end."""
    quotes = 0
    for stop, line in enumerate(lines, start=1):
        quotes += line.replace('\\"', "").count('"')
        if quotes % 2 == 0 and not line.rstrip().endswith(","):
            return "\n".join(lines[:stop])
    return lines[0] if quotes % 2 else "\n".join(lines)


def _fields(line: str) -> dict[str, str]:
    """By name in small letters. What Civitai adds at the end is JSON, with names of its own in it."""
    line, civitai, resources = line.partition(_CIVITAI)
    found = {" ".join(name.split()).casefold(): _unquoted(value.strip()) for name, value in _FIELD.findall(line)}
    return found | ({_CIVITAI.casefold(): resources} if civitai else {})


def _read_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, read_field in _READERS.items():
        value = fields.get(name.casefold())
        if value is None:
            continue
        try:
            found = read_field(value)
            if name == "Size" and "first pass size" in fields:
                found = _first_pass(fields["first pass size"], found)
        except (ValueError, OverflowError):
            raise ValueError(f"{name}: {value[:40]!r} cannot be understood") from None
        if "sampler_options" in found:
            found["sampler_options"] = {**settings.get("sampler_options", {}), **found["sampler_options"]}
        settings |= found
    return settings


def _as_theirs(settings: dict[str, Any], fields: Mapping[str, str]) -> Found:
    """With the conventions of the program that wrote it, and what it did that is not done here."""
    version = fields.get("version", "")
    notes = _notes(settings, fields)
    if version.casefold().startswith(("comfyui", "fooocus")):
        return _as_comfys(settings, fields, notes)
    usual: dict[str, Any] = {"prompt_style": "a1111", "noise_source": "torch_cuda"}
    sampler, schedule = settings.get("sampler"), settings.get("schedule")
    backend = fields.get("backend", "Diffusers" if fields.get("app") == "SD.Next" else "")
    diffusers = backend.casefold() == "diffusers"
    if sampler in SAMPLERS and sampler not in OWN_TIMESTEPS and schedule in (None, *A1111) and not diffusers:
        usual["preset"] = "a1111"
        if sampler in AUTOMATIC and sampler != "restart" and "schedule type" not in fields and _is_old(version):
            settings = settings | {"schedule": schedule or "normal"}
    if sampler in _BROWNIAN:
        notes.append("the noise that this sampler draws along the way is the program's own, so the picture will differ")
    if sampler in OWN_TIMESTEPS and not diffusers and not _same_timesteps(sampler, settings.get("steps")):
        theirs = SAMPLERS.get(sampler, sampler)
        notes.append(f"{theirs} walks timesteps of its own there, which are not done here, so the picture will differ")
    return Found(usual | settings, notes)


def _same_timesteps(sampler: str, steps: int | None) -> bool:
    """A1111's range(0, 1000, 1000 // steps) + 1 is diffusers' "leading", of SD 1 and XL, where that comes out even."""
    return sampler in ("ddim", "pndm") and steps is not None and steps > 0 and 1000 % steps == 0


def _as_comfys(settings: dict[str, Any], fields: Mapping[str, str], notes: list[str]) -> Found:
    """ComfyUI's conventions: a schedule that is not named is "normal", and layers count from -1."""
    made = {**settings, **swarmui.COMFY}
    if "clip_skip" in made:
        made["clip_skip"] = made["clip_skip"].replace("a1111:", "comfy:-")
    if fields.get("version", "").casefold().startswith("fooocus"):
        raw = {"prompt": fields.get("raw prompt"), "negative_prompt": fields.get("raw negative prompt")}
        made |= {name: text for name, text in raw.items() if text}
        notes = [fooocus.NEVER, *notes]
    if made.get("schedule") not in (None, *NAMES["comfy"]):
        del made["preset"]
    if made.get("sampler") in _BROWNIAN or "ancestral" in str(made.get("sampler")):
        notes = [*notes, swarmui.OTHERS_NOISE]
    return Found(made, notes)


def _is_old(version: str) -> bool:
    """Whether the schedule was part of a sampler's name: before 1.9, and where no version is told."""
    if version.casefold().startswith(_LATER) and not _VERSION.search(version):
        return False
    found = _VERSION.findall(version)
    return not found or (int(found[-1][0]), int(found[-1][1])) < _SCHEDULES_SINCE


def _notes(settings: Mapping[str, Any], fields: Mapping[str, str]) -> list[str]:
    """What changes the picture and is not done here."""
    on = {name: value for name, value in fields.items() if value.casefold() not in _OFF}
    notes = []
    second = [name for name in on if name.startswith("hires")]
    if second or "first pass size" in fields:
        notes += not_done(second or ["a second pass"], "is not done here: these settings make the first, smaller pass")
    elif (strength := on.get("denoising strength", on.get("denoise", "1"))) not in ("1", "1.0", "1.00"):
        notes.append(
            f"the picture was made from another, which it does not hold: give image= and strength={strength[:20]}"
        )
    if "refiner" in on:
        at = on.get("refiner switch at", "?")[:20]
        notes.append(f"{on['refiner'][:60]} took over at {at}: load it and give refiner= and refiner_start=")
    others = [name for name in on if name in _NOT_DONE or name.startswith(_NOT_DONE_BEGIN)]
    if not _sampler_sigma(fields.get("sampler sigma", "karras")):
        others.append("sampler sigma")
    if not any(name in on for name in ("variation seed strength", "variation strength")):
        others = [name for name in others if name != "variation seed"]
    if (emphasis := fields.get("emphasis", "Original")).casefold() != "original":  # "None" is one of them
        others.append(f"emphasis {emphasis[:20]!r}")
    if re.search(r'"(?:lora|locon|dora|embed)"|:(?:lora|lycoris|dora|embedding):', on.get(_CIVITAI.casefold(), "")):
        others.append("the LoRAs and embeddings of civitai resources")
    notes += not_done(others)
    if re.search(r"<(?:lora|lyco|hypernet):", settings["prompt"]):
        hashes = f" ({on['lora hashes'][:200]})" if "lora hashes" in on else ""
        notes.append(f"the prompt names adapters{hashes}: give adapters_folder=, or adapters={{name: adapter}}")
    elif "lora hashes" in on:
        notes.append(f"the picture wore adapters ({on['lora hashes'][:200]}): give adapters=")
    return notes


def _hashes(adapters: str | None) -> str | None:
    """A1111's field of the adapters that a picture wore, from ours."""
    found = re.findall(r"(?:^|, )(.+?) \(([0-9a-f]+)\)", adapters or "")
    return ", ".join(f"{name}: {digest}" for name, digest in found) or None


def _clip_skip(text: str) -> dict[str, Any]:
    """As A1111 counts, from 1; some tools write -1, as ComfyUI does, and 0 where nothing is skipped."""
    if ":" in text:
        return {"clip_skip": text}
    count = abs(int(float(text)))
    return {"clip_skip": f"a1111:{count}"} if count else {}


def _rng(text: str) -> dict[str, Any]:
    return {"noise_source": "torch_cpu" if text.casefold() == "cpu" else "torch_cuda"}


def _sampler(text: str) -> dict[str, Any]:
    """By A1111's name, or by that of a tool that borrows its form; what is not known keeps its name."""
    choice = names.comfy(text) or names.other(text) or _with_schedule(text)
    return {"sampler": text} if choice is None else choice.settings()


def _with_schedule(text: str) -> names.Choice | None:
    """ComfyUI's names of a sampler and a schedule in one, as its nodes that write A1111's text have them."""
    for theirs in names.COMFY_SCHEDULES:
        for between in ("_", " "):
            if text.endswith(between + theirs):
                return names.comfy(text.removesuffix(between + theirs), theirs)
    return None


def _schedule(text: str) -> dict[str, Any]:
    """Automatic is whatever their sampler likes best, and no schedule of ours."""
    if text.casefold() in ("automatic", ""):
        return {}
    return {"schedule": schedule_here(text) or names.COMFY_SCHEDULES.get(text, text)}


def _scheduler(text: str) -> dict[str, Any]:
    """ComfyUI's and Fooocus' word; SD.Next's is the sampler's class in diffusers, and no schedule."""
    return {} if text.endswith("Scheduler") else _schedule(text)


def _sampler_sigma(text: str) -> dict[str, Any]:
    """SD.Next's word for diffusers' use_karras_sigmas and its like."""
    return {"schedule": text.casefold()} if text.casefold() in ("karras", "exponential", "beta") else {}


def _first_pass(text: str, second: Mapping[str, int]) -> dict[str, Any]:
    """The size of the first pass, where `Size` was the `second`'s: so in A1111 before 1.0.

    0x0 is as many pixels as 512 x 512 in the shape of the second (old_hires_fix_first_pass_dimensions).
    """
    size = _size(text)
    if all(size.values()):
        return size
    width, height = (max(1, second.get(name, 512)) for name in ("width", "height"))
    scale = math.sqrt(512 * 512 / (width * height))
    return {"width": math.ceil(scale * width / 64) * 64, "height": math.ceil(scale * height / 64) * 64}


def _size(text: str) -> dict[str, Any]:
    width, height = re.split(r"\s*[xX×*]\s*", text)
    return {"width": _whole(width), "height": _whole(height)}


def _whole(text: str) -> int:
    """20 may be written as 20.0."""
    number = float(text) if "." in text else int(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _number(name: str) -> Callable[[str], dict[str, Any]]:
    def read_number(text: str) -> dict[str, Any]:
        point = re.sub(r"^(\d+),(\d+)$", r"\1.\2", text)  # a comma in some countries
        if not math.isfinite(value := float(point)):
            raise ValueError
        return {name: value}

    return read_number


def _option(name: str) -> Callable[[str], dict[str, Any]]:
    read_number = _number(name)
    return lambda text: {"sampler_options": read_number(text)}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": lambda text: {"steps": _whole(text)},
    "Sampler": _sampler,
    "Schedule type": _schedule,
    "CFG scale": _number("guidance_scale"),
    "CFG rescale": _number("guidance_rescale"),
    "Schedule rho": lambda text: {"sampler_options": {"rho": float(text)}} if float(text) else {},
    "Guidance schedule": lambda text: {"guidance_schedule": text},
    "Seed": lambda text: {"seed": _whole(text)},
    "Scheduler": _scheduler,
    "Sampler sigma": _sampler_sigma,
    "Size": _size,
    "Prompt style": lambda text: {"prompt_style": text},
    "Clip skip": _clip_skip,
    "RNG": _rng,
    "Adapters": lambda text: {"adapters": text},
    "Eta": _number("eta"),
    "Eta DDIM": _number("eta"),
    **{theirs: _option(ours) for ours, theirs in SIGMAS.items()},
}
_NAMES = {*map(str.casefold, _READERS), "model", "model hash", "vae", "batch", "app", "version"}


def _quoted(value: str) -> str:
    """A1111's rule: as JSON where the value would be taken for more than one field."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value, strict=False))
    except (ValueError, RecursionError):
        return value


def _short(number: float | None) -> str | None:
    """7.0 as 7, as people write it, and the float32 nearest to 7.3 as 7.3."""
    return None if number is None else str(np.float32(number)).removesuffix(".0")
