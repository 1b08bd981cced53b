"""The depth estimator of Stable Diffusion 2 depth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.core.json_fields import Fields
from sdjax.core.limits import MOST_LAYERS

Json = Mapping[str, Any]


@dataclass(frozen=True)
class DepthConfig:
    """DPT-hybrid: `depth_estimator/config.json` (transformers' DPTConfig with a BitConfig inside)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    qkv_bias: bool
    taken: tuple[int, ...]  # layers whose output goes into the neck, beside two stages of the backbone
    neck_hidden_sizes: tuple[int, ...]
    fusion_hidden_size: int
    bit_stem: int
    bit_widths: tuple[int, ...]
    bit_depths: tuple[int, ...]
    bit_groups: int

    @classmethod
    def from_dict(cls, config: Json) -> "DepthConfig":
        """Reads the dict of a depth estimator's config.json. Raises ConfigError."""
        read = Fields(config, "depth_estimator/config.json")
        for key, values in _DEPTH_FIXED.items():
            if config.get(key) is not None or key == "is_hybrid":
                read.one_of(key, values)
        inner = config.get("backbone_config") or {}
        if not isinstance(inner, Mapping):
            raise read.error("backbone_config", "an object", inner)
        bit = _backbone(inner)
        depths = bit.wholes("depths", 3) if inner.get("depths") is not None else (3, 4, 9)
        widths = bit.wholes("hidden_sizes", 4) if inner.get("hidden_sizes") is not None else (256, 512, 1024)
        necks = read.wholes("neck_hidden_sizes", 4) if config.get("neck_hidden_sizes") else (96, 192, 384, 768)
        outputs, layers = config.get("backbone_out_indices") or (2, 5, 8, 11), read.whole("num_hidden_layers", 12)
        if not _rising(outputs, layers):
            raise read.error("backbone_out_indices", f"four layers below {layers}, one after the other", outputs)
        factors = read.list("reassemble_factors", (int, float)) or (1, 1, 1, 0.5)
        if tuple(factors[2:]) != (1, 0.5):  # the first two are the backbone's, which nothing resizes
            raise read.error("reassemble_factors", "four numbers, the last two 1 and 0.5", factors)
        if len(necks) != 4 or len(depths) != 3 or len(widths) < 3 or list(necks[:2]) != list(widths[:2]):
            raise read.error("neck_hidden_sizes", "four, the first two those of the backbone's stages", list(necks))
        width, heads = read.whole("hidden_size", 768), read.whole("num_attention_heads", 12)
        stem, groups = bit.whole("embedding_size", 64), bit.whole("num_groups", 32)
        side, patch = read.whole("image_size", 384, most=4096), read.whole("patch_size", 16)
        read.multiples("hidden_size", [width], "num_attention_heads", [heads])
        read.multiples("image_size", [side], "patch_size", [patch])
        bit.multiples("hidden_sizes", [stem, *widths[:3]], "num_groups", [groups] * 4)
        return cls(
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size", 3072),
            num_hidden_layers=read.whole("num_hidden_layers", 12, most=MOST_LAYERS),
            num_attention_heads=heads,
            image_size=side,
            patch_size=patch,
            layer_norm_eps=read.number("layer_norm_eps", 1e-12, 0.0, 1.0),
            qkv_bias=read.flag("qkv_bias", True),
            taken=tuple(outputs[2:]),
            neck_hidden_sizes=necks,
            fusion_hidden_size=read.whole("fusion_hidden_size", 256),
            bit_stem=stem,
            bit_widths=widths[:3],
            bit_depths=depths,
            bit_groups=groups,
        )


def _backbone(inner: Json) -> Fields:
    """backbone_config, checked to be of the network we have. Where it is left out, that is what is meant."""
    bit = Fields(inner, "depth_estimator/config.json: backbone_config")
    if inner:
        bit.require("depths")
    for key, values in _BIT_FIXED.items():
        if inner.get(key) is not None or (inner and key in _BIT_OTHERWISE):
            bit.one_of(key, values)
    if max(bit.list("depths", int), default=0) > MOST_LAYERS:
        raise bit.error("depths", f"three numbers up to {MOST_LAYERS}", inner["depths"])
    return bit


def _rising(outputs: Any, layers: int) -> bool:
    """Whether these are four numbers, of which the last two are layers, the later one last."""
    if not isinstance(outputs, list | tuple) or len(outputs) != 4 or any(type(one) is not int for one in outputs):
        return False
    return 0 <= outputs[2] < outputs[3] < layers


# What of a depth estimator's config this package has one value for.
_DEPTH_FIXED: dict[str, tuple[Any, ...]] = {
    "is_hybrid": (True,),
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "patch_size": (16,),  # what the backbone has halved a picture to
    "readout_type": ("project",),
    "head_in_index": (-1,),
    "add_projection": (False,),
    "use_batch_norm_in_fusion_residual": (False,),
    "use_bias_in_fusion_residual": (True,),
    "neck_ignore_stages": ([0, 1],),
}
_BIT_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("relu",),
    "layer_type": ("bottleneck",),
    "global_padding": ("same", "SAME"),
    "embedding_dynamic_padding": (True,),
    "output_stride": (32,),
    "width_factor": (1,),
    "out_features": (["stage1", "stage2", "stage3"],),
    "num_channels": (3,),
}
# Of these a backbone_config that does not say means another value.
_BIT_OTHERWISE = ("layer_type", "global_padding", "embedding_dynamic_padding")
