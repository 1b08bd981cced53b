"""From a checkpoint's configs to the parts of a model, each checked against the others."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdjax.config import ClipTextConfig, ClipVisionConfig, ConfigError, DepthConfig, UNetConfig, VaeConfig
from sdjax.config.components import TOKENIZERS
from sdjax.core.errors import shown
from sdjax.core.json_fields import Fields
from sdjax.diffusion.bounds import MOST_TIMESTEPS
from sdjax.diffusion.noise import Settings
from sdjax.images.processor import WHERE, Processor
from sdjax.model.families import SD, family_of
from sdjax.model.image_towers import DepthEstimator, ImageEncoder
from sdjax.model.spec import ModelSpec
from sdjax.model.text_encoder import TextEncoder
from sdjax.text import grammar
from sdjax.text.grammar import Grammar
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Checkpoint, CheckpointError
from sdjax.weights.files import parse_json

LOW_RES = "low_res_scheduler/scheduler_config.json"


def open_spec(opened: Checkpoint, source: str | Path) -> ModelSpec:
    """What an open checkpoint is; no weight is read.

    source: as the user called it. Raises CheckpointError or ConfigError, also where its parts do not fit together.
    """
    encoders = {
        name: _encoder(opened, name, folder, f"{source}/{folder}")
        for name, folder in TOKENIZERS.items()
        if name in opened.configs
    }
    unet, vae = UNetConfig.from_dict(opened.configs["unet"]), VaeConfig.from_dict(opened.configs["vae"])
    towers = _image_towers(opened)
    _check_scheduler(opened.scheduler)
    _check_fit(encoders, towers, unet, vae)
    index = Fields(opened.index, "model_index.json")
    low_res = opened.files.get(LOW_RES)
    return ModelSpec(
        name=Path(str(source)).name or str(source),
        encoders=encoders,
        unet=unet,
        vae=vae,
        scheduler=opened.scheduler,
        guidance_scale=_guidance_scale(index, unet),
        zeros_for_empty_negative=bool(opened.index.get("force_zeros_for_empty_prompt", False)),
        **towers,
        low_res_scheduler=None if low_res is None else parse_json(low_res.decode("utf-8", "replace"), Path(LOW_RES)),
        most_noise=index.whole("max_noise_level", 350, least=0),
    )


def _guidance_scale(index: Fields, unet: UNetConfig) -> float:
    """The checkpoint's own, else what diffusers' pipelines have: 9 for the upscaler, for the others their family's."""
    family = family_of(unet)
    usual = 9.0 if unet.num_class_embeds and family == SD else family.guidance_scale
    return index.number("_guidance_scale", usual, 0.0, 1000.0)


def _encoder(opened: Checkpoint, name: str, folder: str, where: str) -> TextEncoder:
    """A text encoder with its tokenizer. Raises CheckpointError or ConfigError, also where they do not fit."""
    config = ClipTextConfig.from_dict(opened.configs[name])
    try:
        tokenizer = Tokenizer.read(opened.tokenizer(folder), where)
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(shown(str(error), 400)) from None
    for key, needs, has in (
        ("vocab_size", tokenizer.size, config.vocab_size),
        ("max_position_embeddings", tokenizer.max_length, config.max_position_embeddings),
    ):
        if needs > has:
            raise CheckpointError(
                f"{where} does not belong to {name}/config.json: it needs a {key} of at least {needs}, not {has}"
            )
    return TextEncoder(config, tokenizer, _grammar(opened, folder, f"{where}/{grammar.FILE}"))


def _grammar(opened: Checkpoint, folder: str, where: str) -> Grammar | None:
    """The sentences that a small text encoder knows, where its tokenizer's folder says. Raises ConfigError."""
    data = opened.tokenizer(folder).get(grammar.FILE)
    return None if data is None else Grammar.read(parse_json(data.decode("utf-8", "replace"), Path(where)), where)


def _image_towers(opened: Checkpoint) -> dict[str, Any]:
    """The networks that look at pictures, each with what is done to one before it. Raises ConfigError."""
    used = [name for name in ("image_encoder", "depth_estimator") if name in opened.configs]
    if not used:
        return {}
    text = opened.files.get("feature_extractor/preprocessor_config.json")
    if text is None:
        raise CheckpointError(
            f"feature_extractor/preprocessor_config.json is missing: it says how {' and '.join(used)} sees a picture"
        )
    usual = "CLIP" if "image_encoder" in used else "DPT"
    processor = Processor.from_dict(parse_json(text.decode("utf-8", "replace"), Path(WHERE)), usual)
    made: dict[str, Any] = {}
    if "image_encoder" in used:
        made["image_encoder"] = ImageEncoder(ClipVisionConfig.from_dict(opened.configs["image_encoder"]), processor)
    if "depth_estimator" in used:
        made["depth_estimator"] = DepthEstimator(DepthConfig.from_dict(opened.configs["depth_estimator"]), processor)
    return made


def _check_fit(
    encoders: Mapping[str, TextEncoder], towers: Mapping[str, Any], unet: UNetConfig, vae: VaeConfig
) -> None:
    """Raises ConfigError where one network does not take what another gives."""
    width, names = sum(encoder.config.hidden_size for encoder in encoders.values()), ", ".join(encoders)
    if not encoders:
        width, names = towers["image_encoder"].config.projection_dim, "image_encoder"
    if width != unet.cross_attention_dim:
        raise ConfigError(
            f"unet/config.json: cross_attention_dim is {unet.cross_attention_dim}, and what it attends to ({names}) "
            f"is {width} wide: they are not of one checkpoint"
        )
    if vae.latent_channels != unet.out_channels:
        raise ConfigError(
            f"vae/config.json: latent_channels is {vae.latent_channels}, and the U-Net gives {unet.out_channels}: "
            "they are not of one checkpoint"
        )


def _check_scheduler(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of another kind than the key's; what the values mean `plan` looks at."""
    read = Fields(config, "scheduler/scheduler_config.json")
    read.whole("num_train_timesteps", 1000, most=MOST_TIMESTEPS)
    read.list("_use_default_values", str)
    read.list("disable_corrector", int)
    read.list("trained_betas", (int, float))
    for key in ("beta_start", "beta_end"):
        read.number(key, 0.01, 0.0, 0.999)  # diffusers' own bound where it makes them
    for key in ("sigma_min", "sigma_max"):
        read.number(key, 1.0)
    for field in fields(Settings):
        match field.default:
            case bool():
                read.flag(field.name, field.default)
            case int():
                read.whole(field.name, field.default, least=0)
            case float():
                read.number(field.name, field.default)
            case str():
                read.text(field.name, field.default)
