"""How strong PEFT's adapters are: their files hold no alpha, a config beside them or in their metadata does.

Of a module of rank r, with the config's lora_alpha a, or that of its own in alpha_pattern,

    scale = a / r        or, with use_rslora,        scale = a / sqrt(r)                                   (1)

so that in kohya's words, where the scale is always alpha / r, alpha is a, or a sqrt(r). The rank is the tensors' own.

PEFT writes adapter_config.json into a folder; diffusers writes the same fields into the file's metadata, as JSON under
"lora_adapter_metadata", each behind the name of its component: "unet.lora_alpha". Where there is neither, a is r.

Sources: huggingface/peft src/peft/tuners/lora/layer.py, LoraLayer.update_layer, and utils/other.py, get_pattern_key;
diffusers loaders/lora_base.py, LoraBaseMixin.save_lora_weights.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.adapters.module_names import Module
from sdjax.adapters.names import TE, TE1, TE2, UNET
from sdjax.core.errors import CheckpointError, shown
from sdjax.core.json_fields import Fields
from sdjax.core.short import short
from sdjax.weights.files import parse_json, read_json

METADATA = "lora_adapter_metadata"
_COMPONENTS = {UNET: "unet.", TE1: "text_encoder.", TE2: "text_encoder_2."}
# PEFT's patterns are regular expressions, which a stranger may write so that they never end. Names are all that occur.
_PLAIN = re.compile(r"\^?[\w.]+\$?", re.ASCII)
_LARGEST = 1e6  # of alpha


@dataclass(frozen=True)
class Strength:
    """What one config says of the modules that it is for.

    Attributes:
      alpha: of modules in no pattern; None where it is their rank. patterns: alpha by a module's name, or its end, with
        underscores. root: whether alpha is shared by the root of the rank (use_rslora).
    """

    alpha: float | None = None
    patterns: tuple[tuple[str, bool, float], ...] = ()
    root: bool = False

    def of(self, module: str, rank: int) -> np.ndarray | None:
        """Alpha as kohya's files would have it, float32; None where it is the rank."""
        own = (alpha for name, whole, alpha in self.patterns if module == name or _ends(module, name, whole))
        alpha = next(own, self.alpha)
        if alpha is None and not self.root:
            return None
        return np.float32((rank if alpha is None else alpha) * (math.sqrt(rank) if self.root else 1.0))


def strengths(metadata: Mapping[str, str], config: Path | None, where: Path) -> dict[str, Strength]:
    """What is said of each part, by part; of "te" what a folder's config says of all. Raises CheckpointError."""
    if config is not None:
        found = read_json(config)
        _check_kind(found, config)
        return dict.fromkeys((UNET, TE, TE1, TE2), _strength(found, str(config)))
    if METADATA not in metadata:
        return {}
    said, told = parse_json(metadata[METADATA], where), f"{where}: {METADATA}"
    by_part = {}
    for part, prefix in _COMPONENTS.items():
        own = {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}
        if own:
            by_part[part] = _strength(own, f"{told}: {prefix[:-1]}")
    return by_part


def _check_kind(config: Mapping[str, Any], where: Path) -> None:
    """Raises CheckpointError for a config of another kind of adapter, or of one that changes its base as well."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{where}: an adapter of PEFT's kind {short(kind)} is not read; LORA (with DoRA) is")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and re.match(r"pissa|olora|corda", start):
        raise CheckpointError(
            f"{where}: init_lora_weights is {short(start)}, so that these numbers are for a base that was changed with "
            "them; save it again with PEFT's path_initial_model_for_weight_conversion, as an ordinary LoRA"
        )


def _strength(config: Mapping[str, Any], where: str) -> Strength:
    fields = Fields(config, where)
    alpha = None if config.get("lora_alpha") is None else fields.number("lora_alpha", 0.0, 0.0, _LARGEST)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise fields.error("alpha_pattern", "an object of numbers", patterns)
    own = []
    for pattern, value in patterns.items():
        if not _PLAIN.fullmatch(pattern):
            raise CheckpointError(f"{where}: alpha_pattern {shown(pattern, 80)} is no name of a module, with dots")
        number = Fields({"alpha_pattern": value}, where).number("alpha_pattern", 0.0, 0.0, _LARGEST)
        own.append((pattern.strip("^$").replace(".", "_"), pattern.startswith("^"), number))
    return Strength(alpha, tuple(own), fields.flag("use_rslora", False))


def _ends(module: str, name: str, whole: bool) -> bool:
    return not whole and module.endswith(f"_{name}")


def with_alpha(module: Module, tensors: dict[str, np.ndarray], said: Mapping[str, Strength]) -> dict[str, np.ndarray]:
    """A module's tensors by kohya's words, with the alpha that a config says of it where they have none."""
    down = tensors.get("lora_down.weight")
    strength = said.get(module.part)
    if strength is None or down is None or down.ndim == 0 or "alpha" in tensors:
        return tensors
    alpha = strength.of(module.name, down.shape[0])
    return tensors if alpha is None else tensors | {"alpha": alpha}
