"""The VAE's own parameters learn: all of them, or the decoder's alone; and with them a discriminator if there is one.

Where the decoder alone learns, latents stay what they are to the last bit, and every U-Net that was trained on them
goes on fitting: so came Stability's ft-EMA and ft-MSE decoders about. What learns is

    {"vae": the parameters, those of the encoder left out where it stays; "discriminator": ..; "log_variance": ..}

and what is written is the VAE: a folder that diffusers' `AutoencoderKL.from_pretrained` and `sdjax.load(vae=)` open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import VaeConfig
from sdjax.core.errors import unknown
from sdjax.core.tree import Params
from sdjax.nn.discriminator import PatchDiscriminator, fresh_discriminator
from sdjax.weights.save import default_layout, save_component

PARTS = {"all": ("encoder", "quant_conv", "post_quant_conv", "decoder"), "decoder": ("post_quant_conv", "decoder")}


@dataclass(frozen=True)
class VaeTraining:
    """See above. part: one of PARTS. log_variance: whether s of `adversarial` learns. Raises ValueError."""

    config: VaeConfig
    part: str = "all"
    discriminator: PatchDiscriminator | None = None
    log_variance: bool = False

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(unknown(f"part {self.part!r} of a VAE is unknown", self.part, PARTS))

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """What learns, float32: copies of the VAE's parameters, a fresh discriminator. Raises ValueError."""
        if "vae" not in params:
            raise ValueError(f"a VAE is to learn, and the parameters are of {', '.join(params) or 'nothing'}")
        own = {name: child for name, child in params["vae"].items() if name in PARTS[self.part]}
        made: dict[str, Any] = {"vae": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), own)}
        if self.discriminator is not None:
            made["discriminator"] = fresh_discriminator(self.discriminator, key)
        if self.log_variance:
            made["log_variance"] = {"value": jnp.zeros(())}
        return made

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `method`."""
        return {**params, **trainable, "vae": {**params["vae"], **trainable["vae"]}}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes config.json and the weights into `folder`/vae, float32, and returns that. Raises CheckpointError.

        metadata: has no place in such a folder, but for "scaling_factor", which takes the config's place.
        """
        vae = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self.join(trainable, params)["vae"])
        config = vae_json(self.config)
        if "scaling_factor" in metadata:
            config["scaling_factor"] = float(metadata["scaling_factor"])
        save_component(folder / "vae", vae, default_layout(vae, config))
        return folder / "vae"


def vae_json(config: VaeConfig) -> dict[str, Any]:
    """What config.json says of such a VAE, as diffusers' AutoencoderKL has it."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": config.force_upcast,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.mid_block_add_attention,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.out_channels,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": config.use_post_quant_conv,
        "use_quant_conv": config.use_quant_conv,
    }
