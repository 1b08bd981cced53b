"""NovelAI: JSON as `Comment` (or in EXIF), with the prompt once more as `Description`; in old pictures only there.

Its models are not public, and how its seeds make noise is not known; so this gives the same words on the same levels.
Braces and brackets weigh words by 1.05 there, which is not done here.

[1] https://docs.novelai.net/image; the field `noise_schedule` and the samplers' names are those of its API
"""

import re

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, not_done, sampler

NOISE = "NovelAI's seeds mean noise that is not known, so the picture will differ"
_SCHEDULES = {
    "native": "normal",
    "karras": "karras",
    "exponential": "exponential",
    "polyexponential": "polyexponential",
}
_SAMPLERS = {"ddim_v3": "ddim", "plms": "pndm", "k_dpm_2": "dpm2", "k_dpm_2_ancestral": "dpm2_ancestral"}
_OTHERS = ("sm", "sm_dyn", "dynamic_thresholding", "controlnet_model", "reference_strength", "reference_image", "lora_unet_weights")  # fmt: skip  # noqa: E501
_FROM_PICTURES = ("Img2ImgRequest", "NativeInfillingRequest")


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is NovelAI's."""
    return "uc" in fields and "scale" in fields and "prompt" in fields and "sampler" in fields


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    kind = fields.text("request_type", default="PromptGenerateRequest")
    if kind in _FROM_PICTURES or fields.truth("image"):
        raise ValueError(f"{kind[:40]!r} is made from another picture")
    theirs = fields.text("sampler")
    plain = theirs.removeprefix("k_")
    choice = names.Choice(_SAMPLERS[theirs]) if theirs in _SAMPLERS else names.comfy(plain)
    settings = {
        "prompt": fields.text("prompt", "description"),
        **sampler(choice, theirs),
        "steps": fields.whole("steps"),
        "seed": fields.whole("seed"),
        "guidance_scale": float(fields.number("scale")),
        **_size(fields),
    }
    if negative := fields.text("uc", default=""):
        settings["negative_prompt"] = negative
    schedule = fields.text("noise_schedule", default="native")
    if schedule not in _SCHEDULES:
        raise ValueError(f"its noise_schedule {schedule[:60]!r} has no counterpart here")
    if settings["sampler"] not in ("ddim", "pndm"):
        settings |= {"schedule": _SCHEDULES[schedule], "preset": "a1111"}
    if rescale := fields.number("cfg_rescale", default=0.0):
        settings["guidance_rescale"] = float(rescale)
    notes = [NOISE, *not_done(fields.on(_OTHERS))]
    if fields.inner("v4_prompt").inner("caption").truth("char_captions"):
        notes.append("prompts of single characters (char_captions) are left out")
    if re.search(r"[{}\[\]]", settings["prompt"]):
        notes.append("the weights {word} and [word] are read as words")
    return Found(settings, notes)


def _size(fields: Fields) -> dict[str, int]:
    """Old ones do not write it: it is the picture's own."""
    size = fields.get("size")
    width, height = size if isinstance(size, tuple) else (None, None)
    return {"width": fields.whole("width", default=width), "height": fields.whole("height", default=height)}
