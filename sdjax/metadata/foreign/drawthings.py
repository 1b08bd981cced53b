"""Draw Things: JSON in XMP's UserComment, {"c": prompt, "uc": negative prompt, "sampler": "DPM++ 2M Karras", ...}.

Its noise is of its own or, by a switch, torch's ("seed_mode"), which is not followed here.

[1] https://github.com/drawthingsai/draw-things-community; the samplers' names are A1111's
"""

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, not_done, sampler

NOISE = "Draw Things' seeds mean noise of its own, so the picture will differ"
_ALSO = {"Euler Ancestral": "euler_ancestral", "UniPC": "unipc", "LCM": "lcm", "TCD": "tcd"}
_OTHERS = ("lora", "control", "upscaler", "refiner", "mask_blur", "hires_fix")


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is Draw Things'."""
    return "c" in fields and "uc" in fields and "sampler" in fields


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    if fields.number("strength", default=1) != 1:
        raise ValueError("the picture is made from another (strength below 1)")
    theirs = fields.text("sampler")
    choice = names.Choice(_ALSO[theirs]) if theirs in _ALSO else names.other(theirs.replace("DDIM Trailing", "DDIM"))
    width, _, height = fields.text("size").partition("x")
    size = Fields({"width": width, "height": height})
    settings = {
        "prompt": fields.text("c"),
        **sampler(choice, theirs),
        "steps": fields.whole("steps"),
        "seed": fields.whole("seed"),
        "guidance_scale": float(fields.number("scale")),
        "width": size.whole("width"),
        "height": size.whole("height"),
    }
    if negative := fields.text("uc", default=""):
        settings["negative_prompt"] = negative
    return Found(settings, [NOISE, *not_done(fields.on(_OTHERS))])
