"""What a checkpoint's own config.json files say, as frozen dataclasses; `presets` has the published ones.

Each `from_dict` reads the dict of one config.json in the diffusers layout. Only what changes the network is kept.
A value this package has no code for is an error that names the key; a key it does not know is left alone, since
the tensors' names and shapes are checked one by one afterwards. Read `unet` first, then the others;
`components` is the table of them all.
"""

from sdjax.config.clip import ClipTextConfig as ClipTextConfig
from sdjax.config.clip import ClipVisionConfig as ClipVisionConfig
from sdjax.config.components import Config as Config
from sdjax.config.components import read_networks as read_networks
from sdjax.config.controlnet import ControlNetConfig as ControlNetConfig
from sdjax.config.depth import DepthConfig as DepthConfig
from sdjax.config.unet import UNetConfig as UNetConfig
from sdjax.config.vae import VaeConfig as VaeConfig
from sdjax.core.json_fields import ConfigError as ConfigError
