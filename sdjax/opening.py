"""From a name to a checkpoint in memory: a folder, a single file, a Hub id, or the model of our own."""

import warnings
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax import cache, programs
from sdjax.conditions import TextEncoder
from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.pipeline import StableDiffusion
from sdjax.text.tokens import Tokenizer
from sdjax.weights import Checkpoint, open_checkpoint, open_vae

SHAPES = Path(__file__).parent / "assets" / "shapes"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def load(
    source: str | Path | None = None,
    *,
    dtype: DTypeLike = "float32",
    variant: str | None = None,
    revision: str = "main",
    prediction_type: str | None = None,
    vae: str | Path | None = None,
    compilation_cache: bool | str | Path = True,
) -> StableDiffusion:
    """A checkpoint, ready to generate.

    Args:
      source: a folder in the diffusers layout, a .safetensors file in the original one, or a Hub id (`owner/name`);
        None is the shapes model shipped with this package.
      dtype: what the networks compute in: float32, bfloat16 (TPUs, GPUs) or float16.
      variant: which files where there are several, as "fp16" for `*.fp16.safetensors`. revision: of a Hub id.
      prediction_type: what the U-Net predicts, "epsilon" or "v_prediction", in place of what the checkpoint says or,
        for a single file, of what its tensors suggest.
      vae: another autoencoder in place of the checkpoint's own: a file or a folder.
      compilation_cache: keep compiled programs for later processes: True, False, or a folder.

    Warns of what was left aside or had to be guessed.

    Raises:
      CheckpointError: anything wrong with the files. ConfigError: a network this package does not have.
      ValueError: an unknown dtype or prediction type.
    """
    compute = _check_dtype(dtype)
    opened = open_checkpoint(
        SHAPES if source is None else source, variant=variant, revision=revision, prediction_type=prediction_type
    )
    for note in opened.notes:
        warnings.warn(note, stacklevel=2)
    if vae is not None:
        opened = open_vae(vae).into(opened)
    encoders = {
        name: TextEncoder(
            ClipTextConfig.from_dict(opened.configs[name]),
            Tokenizer.read(opened.tokenizer(folder), f"{source or SHAPES}/{folder}"),
        )
        for name, folder in TOKENIZERS.items()
        if name in opened.configs
    }
    unet, autoencoder = UNetConfig.from_dict(opened.configs["unet"]), VaeConfig.from_dict(opened.configs["vae"])
    networks: dict[str, programs.Config] = {name: encoder.config for name, encoder in encoders.items()}
    networks |= {"unet": unet, "vae": autoencoder}
    if compilation_cache is not False:
        cache.enable(None if compilation_cache is True else compilation_cache)
    params, layouts = {}, {}
    for name, expected in programs.expected_params(networks).items():
        params[name], layouts[name] = opened.read(name, expected)
    return StableDiffusion(
        name="shapes" if source is None else Path(str(source)).name or str(source),
        encoders=encoders,
        unet=unet,
        vae=autoencoder,
        scheduler=opened.scheduler,
        params=params,
        dtype=compute,
        guidance_scale=_guidance_scale(opened, unet),
        zero_empty=bool(opened.index.get("force_zeros_for_empty_prompt", False)),
        layouts=layouts,
        files=opened.files,
    )


def _guidance_scale(opened: Checkpoint, unet: UNetConfig) -> float:
    """The checkpoint's own, else what diffusers' pipelines have: 5 for SDXL, 7.5 for the others."""
    usual = 5.0 if unet.addition_embed_type == "text_time" else 7.5
    return float(opened.index.get("_guidance_scale", usual))


def _check_dtype(dtype: DTypeLike) -> DTypeLike:
    known = ("float32", "bfloat16", "float16")
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, not {name!r}")
    return jnp.dtype(name)
