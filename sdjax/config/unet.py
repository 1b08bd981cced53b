"""The U-Net."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sdjax.core.json_fields import ConfigError, Fields
from sdjax.core.limits import MOST_LAYERS, MOST_LEVELS, MOST_RESNETS
from sdjax.core.short import short

Json = Mapping[str, Any]


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

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises TypeError: this is a network's config, and what computes is elsewhere."""
        raise TypeError('sd.unet is the U-Net\'s config: call sd.predict(x, t, context); parameters: sd.params["unet"]')

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @classmethod
    def from_dict(cls, config: Json, where: str = "unet/config.json") -> "UNetConfig":
        """Reads the dict of a U-Net's config.json, which messages call `where`. Raises ConfigError."""
        read = Fields(config, where)
        read.require("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim")
        widths = read.wholes("block_out_channels", MOST_LEVELS)
        levels = len(widths)
        _check_unet(read, levels)
        found = config.get("layers_per_block")
        resnets = read.per_level("layers_per_block", 2 if found is None else found, levels, most=MOST_RESNETS)
        down, up = _transformer_layers(read, resnets)
        # diffusers' field `attention_head_dim` has always held the number of heads for these U-Nets.
        heads = config.get("num_attention_heads") or config.get("attention_head_dim") or 8
        made = cls(
            sample_size=read.whole("sample_size", 64, most=4096),
            in_channels=read.whole("in_channels", 4),
            out_channels=read.whole("out_channels", 4),
            block_out_channels=widths,
            layers_per_block=resnets,
            down_block_types=tuple(config["down_block_types"]),
            up_block_types=tuple(config["up_block_types"]),
            mid_block_type=config.get("mid_block_type", "UNetMidBlock2DCrossAttn"),
            cross_attention_dim=read.whole("cross_attention_dim"),
            heads=read.per_level("attention_head_dim", heads, levels),
            transformer_layers=down,
            up_transformer_layers=up,
            only_cross_attention=_flags(read, "only_cross_attention", levels),
            use_linear_projection=read.flag("use_linear_projection", False),
            upcast_attention=read.flag("upcast_attention", False),
            norm_num_groups=read.whole("norm_num_groups", 32),
            norm_eps=read.number("norm_eps", 1e-5, 0.0, 1.0),
            act_fn=config.get("act_fn") or "silu",
            flip_sin_to_cos=read.flag("flip_sin_to_cos", True),
            freq_shift=read.number("freq_shift", 0, 0.0, 1.0),
            class_embed_type=config.get("class_embed_type"),
            num_class_embeds=read.whole_or_none("num_class_embeds"),
            addition_embed_type=config.get("addition_embed_type"),
            addition_time_embed_dim=read.whole_or_none("addition_time_embed_dim"),
            projection_class_embeddings_input_dim=read.whole_or_none("projection_class_embeddings_input_dim"),
            time_cond_proj_dim=read.whole_or_none("time_cond_proj_dim"),
        )
        made._check_sizes(read)
        return made

    def _check_sizes(self, read: Fields) -> None:
        """What the sizes must be to one another, and in all."""
        widths = self.block_out_channels
        read.multiples("block_out_channels", widths, "norm_num_groups", [self.norm_num_groups] * self.levels)
        kinds = zip(widths, self.heads, self.down_block_types, self.up_block_types[::-1], strict=True)
        crossed = [(width, heads) for width, heads, *types in kinds if any(kind.startswith("Cross") for kind in types)]
        if self.mid_block_type == "UNetMidBlock2DCrossAttn":
            crossed.append((widths[-1], self.heads[-1]))
        for width, heads in crossed:
            read.multiples("block_out_channels", [width], "attention_head_dim", [heads])
        layers = sum(map(sum, (*self.transformer_layers, *self.up_transformer_layers)))
        if layers > MOST_LAYERS:
            raise read.error("transformer_layers_per_block", f"at most {MOST_LAYERS} layers in all", layers)


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


def _check_unet(read: Fields, levels: int) -> None:
    config = read.values
    for key, supported in _UNET_FIXED.items():
        if config.get(key) is not None:
            read.one_of(key, supported)
    if not isinstance(config["cross_attention_dim"], int):
        raise ConfigError(f"{read.where}: cross_attention_dim must be one number for all levels")
    if config.get("addition_embed_type") == "text_time":
        read.require("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    if config.get("class_embed_type") == "projection":
        read.require("projection_class_embeddings_input_dim")
    for key, kinds in (
        ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
        ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
    ):
        if len(read.list(key)) != levels:
            raise ConfigError(f"{read.where}: {key} has {len(config[key])} entries, block_out_channels {levels}")
        for value in config[key]:
            Fields({key: value}, read.where).one_of(key, kinds)


def _transformer_layers(read: Fields, resnets: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Transformer layers of each attention, down by level and up from the coarsest: an up block has one more.

    A level's entry is one number, or one for each of its attentions (SSD-1B). The way up mirrors the way down unless
    `reverse_transformer_layers_per_block` says otherwise.
    """
    config, key, levels = read.values, "transformer_layers_per_block", len(resnets)
    given = _per_level(read, 1 if config.get(key) is None else config[key], levels, key)
    mirrored = config.get(f"reverse_{key}")
    if mirrored is None and any(isinstance(entry, list | tuple) for entry in given):
        raise ConfigError(f"{read.where}: {key} has a list within, so reverse_{key} must be given")
    back = given[::-1] if mirrored is None else _per_level(read, mirrored, levels, f"reverse_{key}")
    down = (_each(read, entry, count, key) for entry, count in zip(given, resnets, strict=True))
    up = (_each(read, entry, count + 1, f"reverse_{key}") for entry, count in zip(back, resnets[::-1], strict=True))
    return tuple(down), tuple(up)


def _each(read: Fields, entry: Any, count: int, key: str) -> tuple[int, ...]:
    listed = tuple(entry) if isinstance(entry, list | tuple) else (entry,) * count
    if len(listed) != count or not all(type(one) is int and 0 <= one <= MOST_LAYERS for one in listed):
        raise ConfigError(f"{read.where}: {key} has {short(entry)} for a level with {count} attentions")
    return listed


def _flags(read: Fields, key: str, levels: int) -> tuple[bool, ...]:
    """True or false, or a list with one of them for each level."""
    values = _per_level(read, read.values.get(key) or False, levels, key)
    return tuple(Fields({key: value}, read.where).flag(key, False) for value in values)


def _per_level(read: Fields, value: Any, levels: int, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        return (value,) * levels
    if len(value) != levels:
        raise ConfigError(f"{read.where}: {key} has {len(value)} entries for {levels} levels")
    return tuple(value)
