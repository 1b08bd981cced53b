"""What the U-Net of a single file predicts: the noise (epsilon) or the velocity. The tensors do not say it.

Asked in this order, as the peers do:

1. the user;
2. an empty tensor named `v_pred`, and `ztsnr` for a zero terminal SNR, by which SDXL's finetunes mark themselves
   (ComfyUI, comfy/supported_models.py; A1111 and Forge likewise);
3. the file's metadata: `modelspec.prediction_type` (https://github.com/Stability-AI/ModelSpec), `modelspec.predict_key`
   (ComfyUI);
4. for Stable Diffusion 2 with 4 channels ComfyUI's rule: a bias in the last transformer spreads wider where the model
   was trained on the velocity, by more than 0.09 (comfy/supported_models.py, SD20);
5. the family's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdjax.config.presets import Preset
from sdjax.core.errors import unknown
from sdjax.weights.files import Header
from sdjax.weights.ldm import UNET_PREFIX
from sdjax.weights.names import READABLE
from sdjax.weights.tensors import read_tensor

TYPES = ("epsilon", "v_prediction", "sample")
V_PRED, ZTSNR = "v_pred", "ztsnr"
SPREAD = 0.09
BIAS = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"

_SPELLINGS = {"eps": "epsilon", "v": "v_prediction"} | {name: name for name in TYPES}
_OVERRIDE = "; prediction_type= overrides that"


@dataclass(frozen=True)
class Prediction:
    """What was decided: the type, what else it changes in the scheduler's config, and what to tell the user."""

    type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


def check_type(prediction_type: str | None) -> None:
    """Raises ValueError for a prediction type that no scheduler knows."""
    if prediction_type is not None and prediction_type not in TYPES:
        raise ValueError(unknown(f"prediction_type {prediction_type!r} is unknown", prediction_type, TYPES))


def decide(header: Header, families: Mapping[str, Preset], given: str | None) -> Prediction:
    """The prediction type of a file, given the families of its shape. Raises ValueError."""
    check_type(given)
    marked = V_PRED in header.tensors
    # Without v_pred ComfyUI overlooks ztsnr: at infinite noise a prediction of the noise says nothing.
    zero = given in (None, "v_prediction") and marked and ZTSNR in header.tensors
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
    if given is not None:
        return Prediction(given, changes)
    if marked:
        also = " at zero terminal SNR (ztsnr)" if zero else ""
        return Prediction("v_prediction", changes, f"v_prediction{also}: the file is marked v_pred{_OVERRIDE}")
    usual = {preset.scheduler.get("prediction_type", "epsilon") for preset in families.values()}
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if stated := _SPELLINGS.get(header.metadata.get(key, "").lower()):
            note = f"{stated}: the file's metadata say so ({key}){_OVERRIDE}"
            return Prediction(stated, {}, None if usual == {stated} else note)
    return _by_spread(header) if len(usual) > 1 else Prediction(usual.pop())


def _by_spread(header: Header) -> Prediction:
    entry = header.tensors.get(BIAS)
    if entry is None or entry.dtype not in READABLE:
        return Prediction("epsilon", {}, f"epsilon, since nothing says otherwise{_OVERRIDE}")
    spread = float(np.std(read_tensor(header, BIAS).astype(np.float64)))
    found = "v_prediction" if spread > SPREAD else "epsilon"
    sign = ">" if spread > SPREAD else "<="
    return Prediction(
        found, {}, f"{found}: guessed as ComfyUI does (spread of a bias {spread:.3f} {sign} {SPREAD}){_OVERRIDE}"
    )
