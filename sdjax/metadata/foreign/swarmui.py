"""SwarmUI: `parameters` is {"sui_image_params": {"prompt": ..., "cfgscale": ..., ...}}, a field for each that was set.

It drives ComfyUI, so noise, prompts and levels are ComfyUI's. Where no sampler is named, its workflow has euler on
normal (WorkflowGenerator.CreateKSampler).

[1] https://github.com/mcmonkeyprojects/SwarmUI, src/Text2Image/T2IParamTypes.cs: the fields' names are the parameters'
    without spaces, in small letters
"""

import re

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, not_done, sampler

INNER = "sui_image_params"
COMFY = {"noise_source": "torch_cpu", "prompt_style": "comfy", "preset": "comfy"}
OTHERS_NOISE = "the noise that this sampler draws along the way is ComfyUI's own, so the picture will differ"
DRAWING = ("ancestral", "sde", "ddpm", "lcm")  # parts of the names of samplers that draw noise along the way
# What changes the picture and is not done here.
_OTHERS = (
    "loras", "initimage", "maskimage", "refinermodel", "refinermethod", "refinerupscale", "refinercontrolpercentage",
    "controlnetmodel", "controlnetimageinput", "variationseedstrength", "freeuversion", "seamlesstileable",
    "sigmamin", "sigmamax", "samplersigmamin", "samplersigmamax", "samplerrho", "revisionimages", "promptimages",
    "useipadapterforrevision", "ipadapterweight", "fluxguidancescale", "sigmashift", "zeronegative", "rescalecfg",
    "dynamicthresholding", "endstepsearly", "unsamplerprompt", "teacachemode", "videomodel", "smartimagepromptresizing",
)  # fmt: skip


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is SwarmUI's."""
    return isinstance(fields.get(INNER), dict)


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    told = fields.inner(INNER)
    theirs = told.text("sampler", "comfyuisampler", "autowebuisampler", default="euler")
    schedule = told.text("scheduler", "comfyuischeduler", default="normal")
    notes = []
    if schedule == "align_your_steps":
        schedule = "ays"
        notes.append("Align Your Steps are taken as Stable Diffusion 1's; for an SDXL write schedule='ays_sdxl'")
        found = sampler(names.comfy(theirs), theirs) | {"schedule": schedule}
    elif schedule not in names.COMFY_SCHEDULES:
        raise ValueError(f"its scheduler {schedule[:60]!r} has no counterpart here")
    else:
        found = sampler(names.comfy(theirs, schedule), theirs)
    settings = {
        **COMFY,
        "prompt": told.text("prompt"),
        **found,
        "steps": told.whole("steps", default=20),
        "seed": told.whole("seed"),
    }
    if negative := told.text("negativeprompt", default=""):
        settings["negative_prompt"] = negative
    if "cfgscale" in told:
        settings["guidance_scale"] = float(told.number("cfgscale"))
    if "width" in told and "height" in told:
        settings |= {"width": told.whole("width"), "height": told.whole("height")}
    if "clipstopatlayer" in told:
        settings["clip_skip"] = f"comfy:{told.whole('clipstopatlayer')}"
    notes += not_done(told.on(_OTHERS))
    if re.search(r"<\w+[:\[>]", settings["prompt"]):
        notes.append("SwarmUI's <...> in the prompt is read as words")
    if any(part in theirs for part in DRAWING):
        notes.append(OTHERS_NOISE)
    return Found(settings, notes)
