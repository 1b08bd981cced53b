"""The ControlNet: half a U-Net beside the U-Net, that looks at a picture (Zhang et al. 2023, arXiv:2302.05543)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.config.unet import UNetConfig
from sdjax.core.json_fields import Fields
from sdjax.core.limits import MOST_LAYERS, MOST_LEVELS

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet's `config.json` (diffusers' ControlNetModel, and ControlNetUnionModel where it has control types).

    Attributes:
      unet: of the U-Net whose half it is; what that says of the way up and out is read by nobody.
      conditioning_channels: of the picture that it looks at.
      conditioning_embedding_out_channels: of that picture's convolutions, from full size on, each halving it but one.
      bgr: whether it was trained with blue first.
      global_pool_conditions: whether what it gives is averaged over the picture (shuffle).
      num_control_type: kinds of maps that a Union was trained with; None where this is none.
      layers: of the Union's transformer over its maps.
    """

    unet: UNetConfig
    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False
    global_pool_conditions: bool = False
    num_control_type: int | None = None
    layers: int = 1

    @property
    def factor(self) -> int:
        """How many pixels of the picture that it looks at are one of the latents, each way."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))

    @property
    def outputs(self) -> int:
        """How many arrays it gives: one for each of the U-Net's skips, and the middle's."""
        return sum(self.unet.layers_per_block) + self.unet.levels + 1

    @classmethod
    def from_dict(cls, config: Json, where: str = "controlnet/config.json") -> "ControlNetConfig":
        """Reads the dict of a ControlNet's config.json, which messages call `where`. Raises ConfigError."""
        read = Fields(config, where)
        for key, supported in _FIXED.items():
            if config.get(key) is not None:
                read.one_of(key, supported)
        unet = UNetConfig.from_dict(_with_way_up(config), where)
        key, union = "conditioning_embedding_out_channels", _is_union(config)
        return cls(
            unet=unet,
            conditioning_channels=read.whole("conditioning_channels", 3, most=64),
            conditioning_embedding_out_channels=read.wholes(key, MOST_LEVELS) if config.get(key) else (16, 32, 96, 256),
            bgr=config.get("controlnet_conditioning_channel_order") == "bgr",
            global_pool_conditions=read.flag("global_pool_conditions", False),
            **(_union(read, unet.block_out_channels[0]) if union else {}),
        )


def config_beside(unet: Json, widths: Sequence[int]) -> dict[str, Any]:
    """config.json of a new ControlNet for the U-Net of this config.json; widths: of its convolutions over the map."""
    left_out = ("up_block_types", "out_channels", "sample_size", "center_input_sample", "time_cond_proj_dim")
    kept = {name: value for name, value in unet.items() if name not in left_out and not name.startswith("_")}
    own = {"in_channels": 4, "conditioning_embedding_out_channels": list(widths)}
    return {"_class_name": "ControlNetModel", **kept, **own}


# Keys of a ControlNet's config that this package has one value for.
_FIXED: dict[str, tuple[Any, ...]] = {
    "encoder_hid_dim": (),  # Kolors' and DeepFloyd's, which read other texts
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}


def _is_union(config: Json) -> bool:
    return config.get("num_control_type") is not None or config.get("_class_name") == "ControlNetUnionModel"


def _union(read: Fields, width: int) -> dict[str, int]:
    """What only a Union's config says. Its tokens are added to the first level's pixels, and so are as wide."""
    read.require("addition_time_embed_dim")
    for key in ("num_trans_channel", "num_proj_channel"):
        if read.whole(key, 320) != width:
            raise read.error(key, f"block_out_channels[0], {width}", read.whole(key, 320))
    types = read.whole("num_control_type", 6, most=1024)
    return {"num_control_type": types, "layers": read.whole("num_trans_layer", 1, most=MOST_LAYERS)}


def _with_way_up(config: Json) -> dict[str, Any]:
    """The config of a U-Net whose way down is the ControlNet's, and whose way up is its mirror image."""
    down, key = config.get("down_block_types"), "transformer_layers_per_block"
    mirrored: dict[str, Any] = {"up_block_types": _mirrored(down), "out_channels": config.get("in_channels")}
    if isinstance(config.get(key), list | tuple):
        mirrored[f"reverse_{key}"] = [
            [*one, *one[-1:]] if isinstance(one, list | tuple) else one for one in config[key][::-1]
        ]
    return {**config, **mirrored}


def _mirrored(down: Any) -> list[Any]:
    kinds = down[::-1] if isinstance(down, list | tuple) else []
    return [kind.replace("Down", "Up") if isinstance(kind, str) else kind for kind in kinds]
