"""Which family of models an adapter is for: told by the widths in it, and where they are silent by what it says.

Files of all families name the same modules, so that a name tells little. A width tells all: cross-attention takes in
what the text encoders give, 768 numbers a token in SD 1.x, 1024 in SD 2.x, 1280 in SDXL's refiner and 2048 in SDXL. A
file that changes no cross-attention may change text encoders, as wide; else there is what its trainer wrote of it.
Where the channels are none of the published models', the adapter is one for a model of somebody's own ("custom"), and
only that model can tell whether it fits.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.adapters.module_names import Module
from sdjax.adapters.names import TE, TE1, TE2, UNET

CUSTOM, UNKNOWN = "custom", "unknown"
SD1, SD2, SDXL, REFINER = "SD 1.x", "SD 2.x", "SDXL", "the SDXL refiner"
WIDTHS = {768: SD1, 1024: SD2, 2048: SDXL, 1280: REFINER}  # of text, as cross-attention takes it in
PRESETS = {SD1: "sd15", SD2: "sd21", SDXL: "sdxl", REFINER: "sdxl_refiner"}  # whose names and shapes the family has
_CHANNELS = {SD1: (320, 640, 1280), SD2: (320, 640, 1280), SDXL: (640, 1280), REFINER: (768, 1536)}
_SAID = (("sdxl_refiner", REFINER), ("sdxl", SDXL), ("sd_v1", SD1), ("sd_v2", SD2), ("sd_2", SD2), ("sd_1", SD1))
_SPEC = (
    ("stable-diffusion-v1", SD1), ("stable-diffusion-v2", SD2), ("stable-diffusion-xl-v1-refiner", REFINER),
    ("stable-diffusion-xl", SDXL),
)  # fmt: skip

Widths = tuple[int, int]  # of what a module gives and takes in: (o, i)


def family_of(widths: Mapping[Module, Widths], metadata: Mapping[str, str]) -> str:
    """The family that an adapter is for; widths: of its modules, as far as they are told.

    One of WIDTHS' values, CUSTOM where the widths are no published model's, UNKNOWN where nothing tells.
    """
    return _by_attention(widths) or _by_text(widths) or _by_metadata(metadata) or UNKNOWN


def text_width(widths: Mapping[Module, Widths]) -> int | None:
    """How wide the text is that an adapter's cross-attention takes in."""
    found = _cross(widths)
    return found[0][1] if found else None


def family_of_params(params: Mapping[str, Any]) -> tuple[str, int | None]:
    """The family of a model, and the width of the text that its U-Net takes in; params: of the U-Net, by path."""
    widths = {
        Module(UNET, path.replace(".", "_")): (leaves["kernel"].shape[-1], leaves["kernel"].shape[-2])
        for path, leaves in params.items()
        if path.endswith(("attn2.to_k", "attn2.to_v"))
    }
    return family_of(widths, {}), text_width(widths)


def described(family: str, width: int | None = None) -> str:
    """A family, and the width of its text, for messages."""
    told = "" if width is None else f" (text {width} wide)"
    return {CUSTOM: "a model of its own kind", UNKNOWN: "a family that it does not tell"}.get(family, family) + told


def _cross(widths: Mapping[Module, Widths]) -> list[Widths]:
    return [
        width
        for module, width in widths.items()
        if module.part == UNET and module.name.endswith(("attn2_to_k", "attn2_to_v"))
    ]


def _by_attention(widths: Mapping[Module, Widths]) -> str | None:
    found = set(_cross(widths))
    if not found:
        return None
    family = WIDTHS.get(next(iter(found))[1], CUSTOM)
    fits = family != CUSTOM and all(WIDTHS.get(i) == family and o in _CHANNELS[family] for o, i in found)
    return family if fits else CUSTOM


def _by_text(widths: Mapping[Module, Widths]) -> str | None:
    """By the text encoders' width, which their attention takes in; of a pair the second alone tells."""
    own = {(module.part, width[1]) for module, width in widths.items() if module.name.endswith("_proj") and width}
    parts = {module.part for module in widths}
    if TE2 in parts:
        return SDXL if {part for part, _ in own} & {TE2} and (TE2, 1280) in own else CUSTOM
    for width, family in ((768, SD1), (1024, SD2), (1280, REFINER)):
        if (TE, width) in own or (TE1, width) in own and width == 1024:
            return family
    return CUSTOM if any(part in (TE, TE1) and width not in WIDTHS for part, width in own) else None


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    """What kohya's trainer and the model spec say (`ss_base_model_version`, `ss_v2`, `modelspec.architecture`)."""
    return (
        _said(_SAID, metadata.get("ss_base_model_version", ""))
        or _said(_SPEC, metadata.get("modelspec.architecture", ""))
        or (SD2 if metadata.get("ss_v2") == "True" else None)
    )


def _said(known: Iterable[tuple[str, str]], text: str) -> str | None:
    return next((family for start, family in known if text.startswith(start)), None)
