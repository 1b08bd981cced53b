"""The sizes of the shapes model: three config.json files' worth, in the diffusers layout."""

from experiments.shapes.world import VOCABULARY
from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig

MAX_LENGTH = 24  # the longest caption has 16 words

VAE_JSON = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 128,
    "scaling_factor": 1.0,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE = VaeConfig.from_dict(VAE_JSON)
