"""What a checkpoint's own config.json files say, as frozen dataclasses.

Each `from_dict` reads the dict of one config.json in the diffusers layout. Only what changes the network is kept.
A value this package has no code for is an error that names the key; a key it does not know is left alone, since
the tensors' names and shapes are checked one by one afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


class ConfigError(ValueError):
    """A config.json asks for something that is missing or that this package does not have."""


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
        _require(config, "text_encoder", "hidden_size", "intermediate_size", "num_hidden_layers")
        _one_of(config, "text_encoder", "hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
        projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        return cls(
            vocab_size=config.get("vocab_size", 49408),
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config.get("num_attention_heads", 8),
            max_position_embeddings=config.get("max_position_embeddings", 77),
            hidden_act=config.get("hidden_act", "quick_gelu"),
            layer_norm_eps=config.get("layer_norm_eps", 1e-5),
            eos_token_id=config.get("eos_token_id", 2),
            projection_dim=config.get("projection_dim", 512) if projects else None,
        )


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net: `unet/config.json` (diffusers' UNet2DConditionModel). Tuples: an entry per level, finest first."""

    sample_size: int  # the native latent height and width
    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    mid_block_type: str | None
    cross_attention_dim: int
    heads: tuple[int, ...]
    transformer_layers: tuple[tuple[int, ...], ...]  # of each attention on the way down, by level
    up_transformer_layers: tuple[tuple[int, ...], ...]  # on the way up, coarsest first
    only_cross_attention: tuple[bool, ...]
    use_linear_projection: bool
    upcast_attention: bool
    norm_num_groups: int
    norm_eps: float
    act_fn: str
    flip_sin_to_cos: bool
    freq_shift: float
    class_embed_type: str | None
    num_class_embeds: int | None
    addition_embed_type: str | None
    addition_time_embed_dim: int | None
    projection_class_embeddings_input_dim: int | None
    time_cond_proj_dim: int | None

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @classmethod
    def from_dict(cls, config: Json) -> "UNetConfig":
        """Reads the dict of a U-Net's config.json. Raises ConfigError."""
        _require(config, "unet", "block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim")
        levels = len(config["block_out_channels"])
        _check_unet(config, levels)
        resnets = _per_level(config.get("layers_per_block", 2), levels, "layers_per_block")
        down, up = _transformer_layers(config, resnets)
        # diffusers' field `attention_head_dim` has always held the number of heads for these U-Nets.
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        return cls(
            sample_size=config.get("sample_size") or 64,
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            block_out_channels=tuple(config["block_out_channels"]),
            layers_per_block=resnets,
            down_block_types=tuple(config["down_block_types"]),
            up_block_types=tuple(config["up_block_types"]),
            mid_block_type=config.get("mid_block_type", "UNetMidBlock2DCrossAttn"),
            cross_attention_dim=config["cross_attention_dim"],
            heads=_per_level(heads, levels, "attention_head_dim"),
            transformer_layers=down,
            up_transformer_layers=up,
            only_cross_attention=_per_level(
                config.get("only_cross_attention") or False, levels, "only_cross_attention"
            ),
            use_linear_projection=bool(config.get("use_linear_projection", False)),
            upcast_attention=bool(config.get("upcast_attention", False)),
            norm_num_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            act_fn=config.get("act_fn", "silu"),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            class_embed_type=config.get("class_embed_type"),
            num_class_embeds=config.get("num_class_embeds"),
            addition_embed_type=config.get("addition_embed_type"),
            addition_time_embed_dim=config.get("addition_time_embed_dim"),
            projection_class_embeddings_input_dim=config.get("projection_class_embeddings_input_dim"),
            time_cond_proj_dim=config.get("time_cond_proj_dim"),
        )


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

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis, 8 in every Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Json) -> "VaeConfig":
        """Reads the dict of a VAE's config.json. Raises ConfigError."""
        _require(config, "vae", "block_out_channels")
        _one_of(config, "vae", "act_fn", ("silu", "swish"), "silu")
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for value in config.get(key, ()):
                _one_of({key: value}, "vae", key, (kind,), kind)
        for key in ("latents_mean", "latents_std", "shift_factor"):
            if config.get(key) is not None:
                raise ConfigError(f"vae/config.json: {key} is not supported yet; only scaling_factor is")
        return cls(
            block_out_channels=tuple(config["block_out_channels"]),
            layers_per_block=config.get("layers_per_block", 1),
            latent_channels=config.get("latent_channels", 4),
            out_channels=config.get("out_channels", 3),
            norm_num_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", 0.18215),
            use_quant_conv=config.get("use_quant_conv", True),
            use_post_quant_conv=config.get("use_post_quant_conv", True),
            mid_block_add_attention=config.get("mid_block_add_attention", True),
            force_upcast=bool(config.get("force_upcast", True)),
        )


# Keys of a U-Net's config that this package has one value for; None always means "the usual".
_UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (),
    "timestep_post_act": (),
    "class_embed_type": ("timestep", "projection"),
    "addition_embed_type": ("text_time",),
    "encoder_hid_dim_type": (),
    "attention_type": ("default",),
    "cross_attention_norm": (),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "center_input_sample": (False,),
    "resnet_skip_time_act": (False,),
    "class_embeddings_concat": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_dim": (),
    "dropout": (0.0,),
}


def _check_unet(config: Json, levels: int) -> None:
    for key, supported in _UNET_FIXED.items():
        if config.get(key) is not None:
            _one_of(config, "unet", key, supported, None)
    if not isinstance(config["cross_attention_dim"], int):
        raise ConfigError("unet/config.json: cross_attention_dim must be one number for all levels")
    for key, kinds in (
        ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
        ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
    ):
        if len(config[key]) != levels:
            raise ConfigError(f"unet/config.json: {key} has {len(config[key])} entries, block_out_channels {levels}")
        for value in config[key]:
            _one_of({key: value}, "unet", key, kinds, None)


def _transformer_layers(config: Json, resnets: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Transformer layers of each attention, down by level and up from the coarsest: an up block has one more.

    A level's entry is one number, or one for each of its attentions (SSD-1B). The way up mirrors the way down unless
    `reverse_transformer_layers_per_block` says otherwise.
    """
    key, levels = "transformer_layers_per_block", len(resnets)
    given = _per_level(config.get(key, 1), levels, key)
    mirrored = config.get(f"reverse_{key}")
    if mirrored is None and any(isinstance(entry, list | tuple) for entry in given):
        raise ConfigError(f"unet/config.json: {key} has a list within, so reverse_{key} must be given")
    back = given[::-1] if mirrored is None else _per_level(mirrored, levels, f"reverse_{key}")
    down = (_each(entry, count, key) for entry, count in zip(given, resnets, strict=True))
    up = (_each(entry, count + 1, f"reverse_{key}") for entry, count in zip(back, resnets[::-1], strict=True))
    return tuple(down), tuple(up)


def _each(entry: Any, count: int, key: str) -> tuple[int, ...]:
    listed = tuple(entry) if isinstance(entry, list | tuple) else (entry,) * count
    if len(listed) != count or not all(isinstance(one, int) for one in listed):
        raise ConfigError(f"unet/config.json: {key} has {entry!r} for a level with {count} attentions")
    return listed


def _require(config: Json, component: str, *keys: str) -> None:
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ConfigError(f"{component}/config.json: {', '.join(missing)} missing; is this the right file?")


def _one_of(config: Json, component: str, key: str, supported: tuple[Any, ...], default: Any) -> None:
    value = config.get(key, default)
    if value not in supported:
        known = ", ".join(repr(one) for one in supported) or "none (leave it out)"
        raise ConfigError(f"{component}/config.json: {key} = {value!r} is not supported; supported: {known}")


def _per_level(value: Any, levels: int, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        return (value,) * levels
    if len(value) != levels:
        raise ConfigError(f"unet/config.json: {key} has {len(value)} entries for {levels} levels")
    return tuple(value)
