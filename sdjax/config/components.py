"""The networks that a checkpoint may have: one table, from which every other list of them follows.

A component is a network under the name that its folder bears in the diffusers layout and that `params` has. A new one,
as a text encoder more, is a line here; beside it stand only what computes it and its parameters' shapes, by the type of
its config (`nn.shapes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.config.clip import ClipTextConfig, ClipVisionConfig
from sdjax.config.depth import DepthConfig
from sdjax.config.unet import UNetConfig
from sdjax.config.vae import VaeConfig

Config = ClipTextConfig | ClipVisionConfig | DepthConfig | UNetConfig | VaeConfig


@dataclass(frozen=True)
class Component:
    """A network of a checkpoint.

    Attributes:
      config: what its config.json is read as.
      classes: the classes that model_index.json may name for it.
      tokenizer: of a text encoder, its tokenizer's folder; tokenizer_classes: the classes of that.
      only: the pipeline, by model_index.json's class, that alone uses it: in any other it is left alone.
    """

    config: type[Config]
    classes: tuple[str, ...]
    tokenizer: str | None = None
    tokenizer_classes: tuple[str, ...] = ()
    only: str | None = None


VARIATION, DEPTH = "StableDiffusionImageVariationPipeline", "StableDiffusionDepth2ImgPipeline"
_CLIP = (ClipTextConfig, ("CLIPTextModel", "CLIPTextModelWithProjection"))
_CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
COMPONENTS: Mapping[str, Component] = {
    "text_encoder": Component(*_CLIP, "tokenizer", _CLIP_TOKENIZER),
    "text_encoder_2": Component(*_CLIP, "tokenizer_2", _CLIP_TOKENIZER),
    "unet": Component(UNetConfig, ("UNet2DConditionModel",)),
    "vae": Component(VaeConfig, ("AutoencoderKL",)),
    "image_encoder": Component(ClipVisionConfig, ("CLIPVisionModelWithProjection",), only=VARIATION),
    "depth_estimator": Component(DepthConfig, ("DPTForDepthEstimation",), only=DEPTH),
}
# The text encoders, each with its tokenizer's folder. Any may be absent: SDXL's refiner has the second alone.
TOKENIZERS: Mapping[str, str] = {name: one.tokenizer for name, one in COMPONENTS.items() if one.tokenizer}


def read_networks(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """Each component's config, from its config.json; names are those of `COMPONENTS`. Raises ConfigError."""
    return {name: COMPONENTS[name].config.from_dict(config) for name, config in configs.items()}
