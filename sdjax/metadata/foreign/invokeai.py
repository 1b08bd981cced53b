"""InvokeAI: `invokeai_metadata` since version 3, before it `sd-metadata`, before that a command line, `Dream`.

It samples by diffusers' schedulers and draws the start on the CPU, so noise and levels are diffusers'; what a sampler
draws along the way comes from a generator of its own [1]. Words are weighed as compel does, "(tall)1.3 house++",
which is not done here.

[1] https://github.com/invoke-ai/InvokeAI, invokeai/app/invocations/metadata.py (CoreMetadataInvocation),
    denoise_latents.py (seed ^ 0xFFFFFFFF), backend/stable_diffusion/schedulers/schedulers.py; before version 3
    ldm/invoke/args.py (metadata_dumps, dream_prompt_str)
"""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, as_number, not_done, sampler

OTHERS_NOISE = "the noise that this sampler draws along the way is InvokeAI's own, so the picture will differ"
DRAWING = ("euler_a", "kdpm_2_a", "sde", "ddpm", "lcm", "k_euler_a", "k_dpm_2_a")
_COMPEL = re.compile(r"[\w)]\+\+|[\w)]--|\)[0-9]*\.?[0-9]+|\)[+-]")
_OTHERS = (
    "controlnets", "ipAdapters", "t2iAdapters", "loras", "refiner_model", "seamless_x", "seamless_y", "hrf_enabled",
    "init_image", "regions", "freeu_config", "vae_shift",
)  # fmt: skip
_OLD = {  # before version 3: k-diffusion's names
    **{"k_lms": "lms", "k_euler": "euler", "k_euler_a": "euler_ancestral", "k_heun": "heun", "k_dpm_2": "dpm2"},
    **{"k_dpm_2_a": "dpm2_ancestral", "plms": "pndm", "ddim": "ddim", "k_dpmpp_2": "dpmpp_2m", "dpmpp_2": "dpmpp_2m"},
}
_MODES = ("txt2img", "sdxl_txt2img")


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is InvokeAI's."""
    old = isinstance(fields.get("image"), dict) and {"model_weights", "app_id"} & {*map(str, fields.found)}
    return "positive_prompt" in fields or bool(old)


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    if "positive_prompt" not in fields:
        return _before_3(fields)
    mode = fields.text("generation_mode", default="txt2img")
    if mode not in _MODES:
        raise ValueError(f"{mode[:40]!r} is made from another picture or by another kind of model; read are {_MODES}")
    theirs = fields.text("scheduler")
    settings = {
        "noise_source": "torch_cuda" if fields.text("rand_device", default="cpu") == "cuda" else "torch_cpu",
        "prompt": fields.text("positive_prompt"),
        **sampler(names.invoke(theirs), theirs),
        "steps": fields.whole("steps"),
        "seed": fields.whole("seed"),
        "guidance_scale": float(fields.number("cfg_scale", default=7.5)),
        "width": fields.whole("width"),
        "height": fields.whole("height"),
    }
    if negative := fields.text("negative_prompt", default=""):
        settings["negative_prompt"] = negative
    for name, theirs_2 in (("prompt", "positive_style_prompt"), ("negative_prompt", "negative_style_prompt")):
        style = fields.text(theirs_2, default="")
        if style.strip() and style != settings.get(name):  # where there is none, the second encoder reads the first's
            settings[f"{name}_2"] = style
    if rescale := fields.number("cfg_rescale_multiplier", default=0.0):
        settings["guidance_rescale"] = float(rescale)
    if skipped := fields.whole("clip_skip", default=0):
        settings["clip_skip"] = f"diffusers:{skipped}"
    return _noted(settings, theirs, fields.on(_OTHERS))


def _before_3(fields: Fields) -> Found:
    image = fields.inner("image")
    if image.text("type", default="txt2img") != "txt2img":
        raise ValueError(f"{str(image.get('type'))[:40]!r} is made from another picture; read is txt2img")
    prompt, theirs = image.get("prompt"), image.text("sampler")
    if isinstance(prompt, list):
        if not prompt or not isinstance(prompt[0], dict):
            raise ValueError("prompt must be a text, or a list of them with weights")
        prompt = prompt[0].get("prompt")
    others = image.on(("variations", "postprocessing", "seamless", "hires_fix", "threshold", "perlin"))
    told = {
        "steps": image.whole("steps"),
        "seed": image.whole("seed"),
        "guidance_scale": float(image.number("cfg_scale")),
        "width": image.whole("width"),
        "height": image.whole("height"),
    }
    return _old(Fields({"prompt": prompt}).text("prompt"), theirs, told, others)


_FLAGS = {"-s": "steps", "-S": "seed", "-W": "width", "-H": "height", "-C": "guidance_scale"}


def read_dream(line: str) -> Found:
    """Of `"a cat [dog]" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms`. Raises ValueError."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"the command line {line[:40]!r} cannot be understood: {error}") from None
    words = [part for word in words for part in _joined(word)]
    pairs = dict(zip(words[1:], words[2:], strict=False))
    if "-I" in pairs or "--init_img" in pairs:
        raise ValueError("the picture is made from another; read is txt2img")
    told = {name: as_number(pairs[flag], name) for flag, name in _FLAGS.items() if flag in pairs}
    others = [flag for flag in ("-G", "-U", "-ft", "--seamless", "-V", "-v") if flag in words[1:]]
    return _old(words[0] if words else "", pairs.get("-A", "k_lms"), told, others)


def _joined(word: str) -> list[str]:
    """-s50 as -s and 50."""
    found = re.fullmatch(r"(-[sSWHC])(\d[\d.]*)", word)
    return [found[1], found[2]] if found else [word]


def _old(prompt: str, theirs: str, told: dict[str, float], others: Sequence[str]) -> Found:
    """What is in [ ] was the negative prompt."""
    if theirs not in _OLD:
        raise ValueError(f"its sampler {theirs[:60]!r} has no counterpart here")
    away = re.findall(r"\[([^\[\]]*)\]", prompt)
    settings = {
        "noise_source": "torch_cuda",
        "prompt": re.sub(r"\[[^\[\]]*\]", "", prompt).strip() if away else prompt,
        "sampler": _OLD[theirs],
        **told,
    }
    if away:
        settings["negative_prompt"] = " ".join(away)
    return _noted(settings, theirs, others)


def _noted(settings: dict[str, Any], theirs: str, others: Sequence[str]) -> Found:
    notes = not_done(others)
    if any(_COMPEL.search(settings.get(name) or "") for name in ("prompt", "negative_prompt")):
        notes.append("compel's weights (word)1.2 and word++ are read as words")
    if any(part in theirs for part in DRAWING):
        notes.append(OTHERS_NOISE)
    return Found(settings, notes)
