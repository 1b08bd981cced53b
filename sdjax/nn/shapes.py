"""The shapes of every parameter of a network, from its config alone; nothing is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import ClipTextConfig, ClipVisionConfig, Config, DepthConfig, UNetConfig, VaeConfig
from sdjax.core.keys import settled
from sdjax.core.tree import Params
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.dpt.depth import DepthNetwork
from sdjax.nn.parameter import shapes
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder


def expected_params(configs: Mapping[str, Config]) -> dict[str, Params]:
    """The shapes of every parameter of the networks: {component: nested dict of `jax.ShapeDtypeStruct`}."""
    with settled():
        return {name: _EXPECTED[type(config)](config) for name, config in configs.items()}


def _expected_text(config: ClipTextConfig) -> Params:
    ids = jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32)
    return shapes(ClipTextEncoder(config), ids)


def _expected_unet(config: UNetConfig) -> Params:
    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    width, size = config.projection_class_embeddings_input_dim or 0, 2 ** (config.levels - 1)
    # The pooled text's width and the number of time ids enter the shapes by their sum alone.
    conditions = Conditions(
        array(1, 1, config.cross_attention_dim),
        added=Added(array(1, width), array(1, 0)) if config.addition_embed_type == "text_time" else None,
        guidance=array(1, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
        class_labels=_labels(config),
    )
    return shapes(UNet(config), array(1, size, size, config.in_channels), array(1), conditions)


def _labels(config: UNetConfig) -> Any:
    if config.class_embed_type == "projection":
        return jax.ShapeDtypeStruct((1, config.projection_class_embeddings_input_dim or 0), jnp.float32)
    classes = config.class_embed_type is not None or config.num_class_embeds is not None
    return jax.ShapeDtypeStruct((1,), jnp.int32) if classes else None


def _expected_vae(config: VaeConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.factor, config.factor, 3), jnp.float32)
    return shapes(Autoencoder(config), pixels)


def _expected_vision(config: ClipVisionConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return shapes(ClipVisionEncoder(config), pixels)


def _expected_depth(config: DepthConfig) -> Params:
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return shapes(DepthNetwork(config), pixels)


_EXPECTED: dict[type, Callable[[Any], Params]] = {
    ClipTextConfig: _expected_text,
    ClipVisionConfig: _expected_vision,
    DepthConfig: _expected_depth,
    UNetConfig: _expected_unet,
    VaeConfig: _expected_vae,
}
