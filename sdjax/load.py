"""From a name to a checkpoint in memory: a folder, a single file, a Hub id, or the model of our own."""

import errno
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.core import hints
from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.model.builtin import SHAPES, meant, open_shipped
from sdjax.model.networks import Networks
from sdjax.model.open import (
    open_spec,
)
from sdjax.pipeline import StableDiffusion
from sdjax.runtime import compilation_cache as cache
from sdjax.runtime.exported import compiled_into, open_exported
from sdjax.weights import open_checkpoint, open_vae
from sdjax.weights.tensors import in_the_file, on_device


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
      dtype: what the networks compute in: float32, bfloat16 (TPUs, GPUs) or float16. In 16 bits the parameters are cast
        as they are read, and `sd.params` are views of the checkpoint's files, which take no memory: `save` reads them
        from there, and refuses a file that was written to since.
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
    spec = open_spec(opened, source)
    stand_in = None if exported is None else open_exported(exported, spec.configs, compute)
    if compilation_cache is not False:
        chosen = None if compilation_cache is True else compilation_cache
        cache.enable(chosen, None if stand_in is None else partial(compiled_into, stand_in))
    params, layouts = {}, {}
    for name, expected in spec.expected_params.items():
        # float32 holds what narrower files say to the last bit. What is to be narrower stays in the file as it is, for
        # `save` and for whatever once needs float32: two copies of a large U-Net fit nowhere.
        how = (jnp.float32, on_device) if compute == jnp.float32 else (None, in_the_file)
        params[name], layouts[name] = opened.read(name, expected, *how)
    made = Networks.of(spec, params, compute, stand_in)
    return StableDiffusion(made, layouts=layouts, files=opened.files)


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
