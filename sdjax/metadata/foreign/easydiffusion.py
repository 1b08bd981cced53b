"""Easy Diffusion: a text for each setting in a PNG, or JSON of them in EXIF; by its API's names or by its labels.

[1] https://github.com/easydiffusion/easydiffusion, ui/easydiffusion/utils/save_utils.py (TASK_TEXT_MAPPING); samplers:
    sdkit/generate/sampler/
"""

from sdjax.metadata.foreign import names
from sdjax.metadata.foreign.fields import Fields, Found, not_done, sampler

NOISE = "how Easy Diffusion's seeds make noise depends on its machine, so the picture may differ"
_SAMPLERS = {
    **{"plms": "pndm", "euler_a": "euler_ancestral", "dpm2_a": "dpm2_ancestral", "dpm2": "dpm2"},
    **{"dpmpp_2s_a": "dpmpp_2s_ancestral", "unipc_snr": "unipc", "unipc_tu": "unipc", "unipc_tq": "unipc"},
}
_OTHERS = {
    "use_lora_model": "LoRA", "use_hypernetwork_model": "hypernetwork", "use_controlnet_model": "ControlNet",
    "use_face_correction": "face correction", "use_upscale": "upscaling", "tiling": "tiling",
    "LoRA model": "LoRA", "Hypernetwork model": "hypernetwork", "ControlNet model": "ControlNet",
    "Use Face Correction": "face correction", "Use Upscaling": "upscaling", "Seamless Tiling": "tiling",
    "use_embeddings_model": "embeddings", "Embedding models": "embeddings",
}  # fmt: skip


def is_its(fields: Fields) -> bool:
    """Whether a JSON object is Easy Diffusion's."""
    return "prompt" in fields and ("use_stable_diffusion_model" in fields or "Stable Diffusion model" in fields)


def read(fields: Fields) -> Found:
    """Raises ValueError."""
    if "prompt_strength" in fields:  # written only with an init_image
        raise ValueError("the picture is made from another")
    theirs = fields.text("sampler_name", "Sampler")
    choice = names.Choice(_SAMPLERS[theirs]) if theirs in _SAMPLERS else names.comfy(theirs)
    settings = {
        "prompt": fields.text("prompt"),
        **sampler(choice, theirs),
        "steps": fields.whole("num_inference_steps", "Steps"),
        "seed": fields.whole("seed"),
        "guidance_scale": float(fields.number("guidance_scale")),
        "width": fields.whole("width"),
        "height": fields.whole("height"),
    }
    if negative := fields.text("negative_prompt", default=""):
        settings["negative_prompt"] = negative
    if fields.truth("clip_skip"):
        settings["clip_skip"] = "a1111:2"  # a switch
    return Found(settings, [NOISE, *not_done(_OTHERS[name] for name in fields.on(_OTHERS))])
