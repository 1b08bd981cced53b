"""What a checkpoint's own config.json files say, as frozen dataclasses; `presets` has the published ones.

Each `from_dict` reads the dict of one config.json in the diffusers layout. Only what changes the network is kept.
A value this package has no code for is an error that names the key; a key it does not know is left alone, since
the tensors' names and shapes are checked one by one afterwards. Read `unet` first, then the others.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.config.clip import ClipTextConfig as ClipTextConfig
from sdjax.config.clip import ClipVisionConfig as ClipVisionConfig
from sdjax.config.depth import DepthConfig as DepthConfig
from sdjax.config.unet import UNetConfig as UNetConfig
from sdjax.config.vae import VaeConfig as VaeConfig
from sdjax.core.json_fields import ConfigError as ConfigError

Config = ClipTextConfig | ClipVisionConfig | DepthConfig | UNetConfig | VaeConfig
KINDS: Mapping[str, type[Config]] = {
    "unet": UNetConfig,
    "vae": VaeConfig,
    "image_encoder": ClipVisionConfig,
    "depth_estimator": DepthConfig,
}


def read_networks(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """Each component's config, from its config.json: those of `KINDS`, and the text encoders. Raises ConfigError."""
    return {name: KINDS.get(name, ClipTextConfig).from_dict(config) for name, config in configs.items()}
