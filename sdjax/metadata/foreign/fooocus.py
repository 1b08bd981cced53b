"""Fooocus: JSON under `parameters` of a PNG or in EXIF, by its own names or by the labels of its log.

Its other scheme is A1111's text (`infotext`), with "Version: Fooocus ...". It samples by ComfyUI's code, and then adds
styles, a sharpening filter and a guidance of its own [1], which are not done here: such a picture is never the same.

[1] https://github.com/lllyasviel/Fooocus, modules/meta_parser.py, modules/flags.py, modules/private_logger.py
"""

import re
from typing import Any

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, not_done, sampler
from sdjax.metadata.foreign.swarmui import COMFY

NEVER = "Fooocus' own styles, sharpness and ADM guidance are not done here, so the picture will differ"
_OTHERS = ("refiner_model", "freeu", "loras", "inpaint_mode", "enhance")
STEPS = {"quality": 60, "speed": 30, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is Fooocus'."""
    its = "metadata_scheme" in fields or str(fields.get("version")).startswith("Fooocus")
    return "prompt" in fields and (its or ("adm_guidance" in fields and "base_model" in fields))


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    theirs = fields.text("sampler")
    settings = {
        **COMFY,
        "prompt": fields.text("prompt"),
        "steps": _steps(fields),
        "guidance_scale": float(fields.number("guidance_scale")),
        "seed": fields.whole("seed"),
        **sampler(names.comfy(theirs), theirs),
        "schedule": schedule(fields.text("scheduler", default="karras")),
    }
    if negative := fields.text("negative_prompt", default=""):
        settings["negative_prompt"] = negative
    if "resolution" in fields:
        settings |= _size(fields.get("resolution"))
    if "clip_skip" in fields:
        settings["clip_skip"] = f"comfy:-{abs(fields.whole('clip_skip'))}"
    others = fields.on(_OTHERS)
    others += [name for name in fields.found if re.match(r"lora", str(name), re.IGNORECASE) and fields.truth(name)]
    return Found(settings, [NEVER, *not_done(others)])


def schedule(theirs: str) -> str:
    """One of ComfyUI's. Raises ValueError."""
    if theirs not in names.COMFY_SCHEDULES:
        raise ValueError(f"its scheduler {theirs[:60]!r} has no counterpart here")
    return names.COMFY_SCHEDULES[theirs]


def _steps(fields: Fields) -> int:
    """Before they were written, the word for the performance told them."""
    usual = STEPS.get(str(fields.get("performance")).casefold())
    return fields.whole("steps", default=usual)


def _size(value: Any) -> dict[str, int]:
    """Of "(1152, 896)" or "1152×896"."""
    found = re.fullmatch(r"\D{0,4}(\d{1,6})\D{1,4}(\d{1,6})\D{0,4}", str(value)[:40])
    if found is None:
        raise ValueError(f"resolution {str(value)[:40]!r} cannot be understood")
    return {"width": int(found[1]), "height": int(found[2])}
