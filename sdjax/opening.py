"""From a name to a checkpoint in memory: a folder, a single file, a Hub id, or the model of our own."""

import errno
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax import cache, hints, programs
from sdjax.conditions import TextEncoder
from sdjax.config import ClipTextConfig, ClipVisionConfig, Config, ConfigError, DepthConfig, UNetConfig, VaeConfig
from sdjax.depth import DepthEstimator
from sdjax.diffusion.bounds import MOST_TIMESTEPS
from sdjax.diffusion.noise import Settings
from sdjax.exported import compiled_into, open_exported
from sdjax.fields import Fields
from sdjax.image_encoder import ImageEncoder
from sdjax.notice import notice
from sdjax.pipeline import StableDiffusion
from sdjax.processor import WHERE, Processor
from sdjax.shipped import SHAPES, meant, open_shipped
from sdjax.short import short
from sdjax.text import grammar
from sdjax.text.grammar import Grammar
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Checkpoint, CheckpointError, open_checkpoint, open_vae
from sdjax.weights.files import parse_json
from sdjax.weights.names import shown

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@hints.arguments(hints.LOAD)
def load(
    source: str | Path | None = None,
    *,
    dtype: DTypeLike = "float32",
    variant: str | None = None,
    revision: str = "main",
    prediction_type: str | None = None,
    vae: str | Path | None = None,
    compilation_cache: bool | str | Path = True,
    exported: str | Path | None = None,
) -> StableDiffusion:
    """A checkpoint, ready to generate.

    Args:
      source: a folder in the diffusers layout, a .safetensors file in the original one, a Hub id (`owner/name`), or
        the name of a model that comes with this package (see `shipped`); None is "shapes", the first of them.
      dtype: what the networks compute in: float32, bfloat16 (TPUs, GPUs) or float16.
      variant: which files where there are several, as "fp16" for `*.fp16.safetensors`. revision: of a Hub id.
      prediction_type: what the U-Net predicts, "epsilon" or "v_prediction", in place of what the checkpoint says or,
        for a single file, of what its tensors suggest.
      vae: another autoencoder in place of the checkpoint's own: a file or a folder.
      compilation_cache: keep compiled programs for later processes: True, False, or a folder.
      exported: a folder that `sdjax.export` wrote for this model: its programs run without tracing. It is run, as a
        program is, so open none from a stranger. With compilation_cache=True, and where no folder was chosen, its
        compiled entries are copied into the user's cache, and what is compiled besides is kept with them.

    Warns of what was left aside or had to be guessed.

    Raises:
      CheckpointError: anything wrong with the files. ConfigError: a network this package does not have.
      ValueError: an argument of another type, an unknown dtype or prediction type; exported programs that are damaged
        or of another model.
    """
    if source is not None and not isinstance(source, str | os.PathLike):
        raise ValueError(f"load takes a folder, a file, a Hub id or a name, not {short(source)}")
    kept = None if isinstance(compilation_cache, bool) else compilation_cache
    _check_paths({"source": source, "vae": vae, "compilation_cache": kept, "exported": exported})
    _check_texts({"variant": variant, "revision": revision, "prediction_type": prediction_type})
    compute = _check_dtype(dtype)
    by_name = source is None or (not (Path(source) / "model_index.json").exists() and meant(source))
    source = SHAPES if source is None else source
    if by_name:
        opened = open_shipped(str(source), prediction_type)
    else:
        opened = open_checkpoint(source, variant=variant, revision=revision, prediction_type=prediction_type)
    if vae is not None:
        opened = open_vae(vae).into(opened)
    for note in opened.notes:
        notice(note)
    encoders = {
        name: _encoder(opened, name, folder, f"{source}/{folder}")
        for name, folder in TOKENIZERS.items()
        if name in opened.configs
    }
    unet, autoencoder = UNetConfig.from_dict(opened.configs["unet"]), VaeConfig.from_dict(opened.configs["vae"])
    eyes = _eyes(opened)
    networks: dict[str, Config] = {name: encoder.config for name, encoder in encoders.items()}
    networks |= {"unet": unet, "vae": autoencoder}
    networks |= {name: eye.config for name, eye in eyes.items()}
    _check_scheduler(opened.scheduler)
    _check_fit(encoders, eyes, unet, autoencoder)
    stand_in = None if exported is None else open_exported(exported, networks, compute)
    if compilation_cache is not False:
        chosen = None if compilation_cache is True else compilation_cache
        cache.enable(chosen, None if stand_in is None else partial(compiled_into, stand_in))
    params, layouts = {}, {}
    for name, expected in programs.expected_params(networks).items():
        # float32 holds what narrower files say to the last bit, and two copies of a large U-Net fit nowhere.
        params[name], layouts[name] = opened.read(name, expected, jnp.float32 if compute == jnp.float32 else None)
    return StableDiffusion(
        name=Path(str(source)).name or str(source),
        encoders=encoders,
        unet=unet,
        vae=autoencoder,
        scheduler=opened.scheduler,
        params=params,
        dtype=compute,
        guidance_scale=_guidance_scale(opened, unet),
        zero_empty=bool(opened.index.get("force_zeros_for_empty_prompt", False)),
        **eyes,
        layouts=layouts,
        files=opened.files,
        programs=stand_in or programs,
    )


def _guidance_scale(opened: Checkpoint, unet: UNetConfig) -> float:
    """The checkpoint's own, else what diffusers' pipelines have: 5 for SDXL, 9 for the upscaler, 7.5 for the others."""
    usual = 5.0 if unet.addition_embed_type == "text_time" else 9.0 if unet.num_class_embeds else 7.5
    return Fields(opened.index, "model_index.json").number("_guidance_scale", usual, 0.0, 1000.0)


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


def _eyes(opened: Checkpoint) -> dict[str, Any]:
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


def _check_fit(encoders: Mapping[str, TextEncoder], eyes: Mapping[str, Any], unet: UNetConfig, vae: VaeConfig) -> None:
    """Raises ConfigError where one network does not take what another gives."""
    width, names = sum(encoder.config.hidden_size for encoder in encoders.values()), ", ".join(encoders)
    if not encoders:
        width, names = eyes["image_encoder"].config.projection_dim, "image_encoder"
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


def _check_dtype(dtype: DTypeLike) -> DTypeLike:
    known = ("float32", "bfloat16", "float16")
    try:
        name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    except TypeError:
        name = short(dtype)
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, not {short(name)}")
    return jnp.dtype(name)


def _check_paths(given: Mapping[str, Any]) -> None:
    """Raises ValueError for what is neither None nor a path that a file system takes."""
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, str | os.PathLike):
            raise ValueError(f"{name} must be a path, not {short(value)}")
        try:
            os.stat(value)
        except (OSError, ValueError) as error:  # ValueError: a NUL, or half a character
            if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
                why = getattr(error, "strerror", None) or error
                raise ValueError(f"{name} {short(str(value))} is no path: {why}") from None


def _check_texts(given: Mapping[str, Any]) -> None:
    """Raises ValueError for what is neither None nor a string."""
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} must be a string, not {short(value)}")
