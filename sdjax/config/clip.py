"""CLIP's two encoders, of text and of pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.core.json_fields import Fields
from sdjax.core.limits import MOST_LAYERS

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text encoder: `text_encoder/config.json` of a checkpoint (transformers' CLIPTextConfig)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int
    projection_dim: int | None  # None: the pooled state stays unprojected (CLIPTextModel)

    @classmethod
    def from_dict(cls, config: Json) -> "ClipTextConfig":
        """Reads the dict of a text encoder's config.json. Raises ConfigError."""
        read = Fields(config, "text_encoder/config.json")
        read.require("hidden_size", "intermediate_size", "num_hidden_layers")
        read.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
        projects = "CLIPTextModelWithProjection" in read.list("architectures")
        width, heads = read.whole("hidden_size"), read.whole("num_attention_heads", 8)
        read.multiples("hidden_size", [width], "num_attention_heads", [heads])
        return cls(
            vocab_size=read.whole("vocab_size", 49408),
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=read.whole("num_hidden_layers", most=MOST_LAYERS),
            num_attention_heads=heads,
            max_position_embeddings=read.whole("max_position_embeddings", 77),
            hidden_act=config.get("hidden_act", "quick_gelu"),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5, 0.0, 1.0),
            eos_token_id=read.whole("eos_token_id", 2, least=0),
            projection_dim=read.whole("projection_dim", 512) if projects else None,
        )


@dataclass(frozen=True)
class ClipVisionConfig:
    """CLIP's image encoder: `image_encoder/config.json` (transformers' CLIPVisionConfig)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    projection_dim: int

    @classmethod
    def from_dict(cls, config: Json) -> "ClipVisionConfig":
        """Reads the dict of an image encoder's config.json. Raises ConfigError."""
        read = Fields(config, "image_encoder/config.json")
        read.require("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size")
        read.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
        width, heads = read.whole("hidden_size"), read.whole("num_attention_heads", 12)
        side, patch = read.whole("image_size", 224, most=4096), read.whole("patch_size")
        read.multiples("hidden_size", [width], "num_attention_heads", [heads])
        read.multiples("image_size", [side], "patch_size", [patch])
        return cls(
            hidden_size=width,
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=read.whole("num_hidden_layers", most=MOST_LAYERS),
            num_attention_heads=heads,
            image_size=side,
            patch_size=patch,
            hidden_act=config.get("hidden_act", "quick_gelu"),
            layer_norm_eps=read.number("layer_norm_eps", 1e-5, 0.0, 1.0),
            projection_dim=read.whole("projection_dim", 512),
        )
