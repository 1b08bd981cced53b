"""IP-Adapter: a model learns to be shown a picture beside the text (Ye et al. 2023, arXiv:2308.06721).

A projection makes tokens of what an image encoder gives, and every cross-attention has layers of its own for their keys
and values, which begin as the text's. U-Net and encoders stay as they are. A batch has, beside what every batch has
(see `objective`),

    embedding   what the image encoder makes of each picture, made beforehand: `b e`, or states `b l e` for the kinds
                "plus" and "full"; of a picture that is left out zeros, or the states of pixels that are zero

The published recipe leaves out the text of 5 % of pictures, the picture of 5 %, and both of 5 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import image_prompt_names as names
from sdjax.config.image_prompt import ImagePromptConfig
from sdjax.core.tree import Params, modules_named
from sdjax.nn.conditioning import Conditions
from sdjax.nn.image_prompt import attention_paths, image_keys_values, projection
from sdjax.nn.injections import ImageTokens, Injections
from sdjax.train.losses.denoising import Denoising
from sdjax.train.objective import Batch
from sdjax.weights.write import Draft, make_folder, write_file, write_tensors

COMPONENT = "image_prompt"
FILE = "ip_adapter.safetensors"


@dataclass(frozen=True)
class ImagePromptDenoising(Denoising):
    """The U-Net's own loss, with cross-attention to a picture beside that to the text."""

    image_prompt: ImagePromptConfig | None = None

    def injected(
        self, params: Mapping[str, Any], batch: Batch, x: jax.Array, t: jax.Array, conditions: Conditions
    ) -> Injections:
        """See `Denoising`. Raises ValueError for a batch without pictures."""
        if "embedding" not in batch:
            raise ValueError("an IP-Adapter learns from encoded pictures; this batch has none under 'embedding'")
        assert self.image_prompt is not None
        own, dtype = params[COMPONENT], self.architecture.dtype
        module = projection(self.image_prompt, dtype)
        tokens = module.apply({"params": own[names.PROJECTION]}, batch["embedding"].astype(jnp.float32))
        keys_values = image_keys_values(own[names.ATTENTION], tokens, dtype)
        b, levels = len(x), range(self.architecture.unet.levels)
        sizes = [(-(-x.shape[1] // 2**level)) * (-(-x.shape[2] // 2**level)) for level in levels]
        everywhere = {str(size): jnp.ones((b, size), jnp.float32) for size in sizes}
        return Injections(
            images=(ImageTokens(keys_values, dict.fromkeys(keys_values, jnp.ones(b, jnp.float32)), everywhere),)
        )


@dataclass(frozen=True)
class ImagePromptTraining:
    """The projection learns, and the layers for keys and values of pictures."""

    config: ImagePromptConfig

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`. Where `params` has an adapter already, that one goes on learning."""
        if COMPONENT in params:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(params[COMPONENT]))
        shape = (1, 1, self.config.image_dim) if self.config.takes_states else (1, self.config.image_dim)
        made = projection(self.config, jnp.float32).init(key, jnp.zeros(shape, jnp.float32))["params"]
        return {names.PROJECTION: made, names.ATTENTION: _as_for_texts(params["unet"])}

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        return {**params, COMPONENT: trainable}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`: one file by the authors' names, float32, which `sdjax.load_image_prompt` opens."""
        own = jax.tree.map(np.asarray, trainable)
        numbered = names.by_id(own[names.ATTENTION], attention_paths(params["unet"]))
        found = names.tensors({**own, names.ATTENTION: numbered}, self.config)
        drafts = {name: Draft.of(array) for name, array in found.items()}
        make_folder(folder)
        write_file(folder / FILE, partial(write_tensors, drafts, metadata))
        return folder / FILE


def _as_for_texts(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The layers for pictures' keys and values as copies of those for texts, by attention."""
    attention = dict(modules_named(unet, ("attn2",)))
    return {
        path: {
            f"to_{part}_ip": {"kernel": jnp.asarray(attention[path][f"to_{part}"]["kernel"], jnp.float32)}
            for part in "kv"
        }
        for path in attention_paths(unet)
    }
