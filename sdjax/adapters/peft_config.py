"""How strong PEFT's adapters are: their files hold no alpha, a config beside them or in their metadata does.

Of a module of rank r, with the config's lora_alpha a, or that of its own in alpha_pattern,

    scale = a / r        or, with use_rslora,        scale = a / sqrt(r)                                   (1)

so that in kohya's words, where the scale is always alpha / r, alpha is a, or a sqrt(r). The rank is the tensors' own.

PEFT writes adapter_config.json into a folder; diffusers writes the same fields into the file's metadata, as JSON under
"lora_adapter_metadata", each behind the name of its component: "unet.lora_alpha". Where there is neither, a is r, as
diffusers has it.

Sources: huggingface/peft src/peft/tuners/lora/layer.py, LoraLayer.update_layer, and utils/other.py, get_pattern_key;
diffusers loaders/lora_base.py, LoraBaseMixin.save_lora_weights.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
_LARGEST, _DEFAULT = 1e6, 8.0  # of alpha; where a config leaves it out, PEFT has 8
_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Strength:
    """What one config says of the modules that it is for.

    Attributes:
      alpha: of modules in no pattern. patterns: alpha by a module's name, or its end, with
        underscores. root: whether alpha is shared by the root of the rank (use_rslora).
    """

    alpha: float
    patterns: tuple[tuple[str, bool, float], ...] = ()
    root: bool = False

    def of(self, module: str, rank: int) -> np.ndarray:
        """Alpha as kohya's files would have it, float64."""
        own = (alpha for name, whole, alpha in self.patterns if module == name or _ends(module, name, whole))
        return np.array(next(own, self.alpha) * (math.sqrt(rank) if self.root else 1.0))


def beside(config: Path | None) -> dict[str, str]:
    """What adapter_config.json says, as the metadata that would say as much. Raises CheckpointError."""
    if config is None:
        return {}
    found = read_json(config)
    _check_kind(found, config)
    said = {key: found[key] for key in _FIELDS if key in found}
    fields = {f"{prefix}{key}": value for prefix in _COMPONENTS.values() for key, value in said.items()}
    return {METADATA: json.dumps(fields, indent=2, sort_keys=True)}


def strengths(metadata: Mapping[str, str], where: Path) -> dict[str, Strength]:
    """What the metadata of a file says of each part, by part; `where` it is. Raises CheckpointError, ConfigError."""
    if METADATA not in metadata:
        return {}
    said = parse_json(metadata[METADATA], where)
    by_part: dict[str, Strength] = {}
    for part, prefix in _COMPONENTS.items():
        own = {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}
        if own:
            by_part[part] = _strength(own, f"{where}: {prefix[:-1]}")
    return by_part | ({TE: by_part[TE1]} if TE1 in by_part else {})


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
    alpha = fields.number("lora_alpha", _DEFAULT, 0.0, _LARGEST)
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
    return tensors | {"alpha": strength.of(module.name, down.shape[0])}


class Said(NamedTuple):
    """What PEFT's config says of one module."""

    rank: int
    alpha: float
    dora: bool


def packed(modules: Mapping[str, Mapping[str, Said]]) -> str:
    """The metadata that says as much, of the modules of each part by path; the inverse of `strengths`."""
    fields: dict[str, Any] = {}
    for part, own in modules.items():
        rank = Counter(one.rank for one in own.values()).most_common(1)[0][0]
        alpha = Counter(one.alpha for one in own.values()).most_common(1)[0][0]
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: one.rank for path, one in own.items() if one.rank != rank},
            "alpha_pattern": {path: one.alpha for path, one in own.items() if one.alpha != alpha},
            "target_modules": sorted(own),
            "use_dora": any(one.dora for one in own.values()),
        }
        fields |= {f"{_COMPONENTS[part]}{key}": value for key, value in config.items()}
    return json.dumps(fields, indent=2, sort_keys=True)
