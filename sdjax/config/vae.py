"""The autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdjax.core.json_fields import ConfigError, Fields
from sdjax.core.limits import MOST_LEVELS, MOST_RESNETS

Json = Mapping[str, Any]


@dataclass(frozen=True)
class VaeConfig:
    """The autoencoder: `vae/config.json` (diffusers' AutoencoderKL)."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    out_channels: int
    norm_num_groups: int
    scaling_factor: float  # latents for the U-Net = scaling_factor * the VAE's own
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool
    force_upcast: bool  # float16 overflows in this VAE's decoder (SDXL)

    if not TYPE_CHECKING:  # a checker of types knows better which names there are

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError, with the place of what this config is taken for."""
            told = ": sd.vae is the VAE's config; call sd.decode and sd.encode" if name in ("decode", "encode") else ""
            raise AttributeError(f"VaeConfig has no {name}{told}")

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis, 8 in every Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Json) -> "VaeConfig":
        """Reads the dict of a VAE's config.json. Raises ConfigError."""
        read = Fields(config, "vae/config.json")
        read.require("block_out_channels")
        read.one_of("act_fn", ("silu", "swish"), "silu")
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for value in read.list(key):
                Fields({key: value}, read.where).one_of(key, (kind,))
        for key in ("latents_mean", "latents_std", "shift_factor"):
            if config.get(key) is not None:
                raise ConfigError(f"vae/config.json: {key} is not supported yet; only scaling_factor is")
        widths, groups = read.wholes("block_out_channels", MOST_LEVELS), read.whole("norm_num_groups", 32)
        read.multiples("block_out_channels", widths, "norm_num_groups", [groups] * len(widths))
        return cls(
            block_out_channels=widths,
            layers_per_block=read.whole("layers_per_block", 1, most=MOST_RESNETS),
            latent_channels=read.whole("latent_channels", 4),
            out_channels=read.whole("out_channels", 3),
            norm_num_groups=groups,
            scaling_factor=read.number("scaling_factor", 0.18215, 1e-6, 1e6),
            use_quant_conv=read.flag("use_quant_conv", True),
            use_post_quant_conv=read.flag("use_post_quant_conv", True),
            mid_block_add_attention=read.flag("mid_block_add_attention", True),
            force_upcast=read.flag("force_upcast", True),
        )
