"""The shapes of every parameter of a network, from its config alone; nothing is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.config import ClipTextConfig, ClipVisionConfig, Config, ControlNetConfig, DepthConfig, UNetConfig, VaeConfig
from sdjax.config.lllite import LLLiteConfig
from sdjax.config.t2i_adapter import T2IAdapterConfig
from sdjax.core.keys import settled
from sdjax.core.tree import Params
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.clip_vision import ClipVisionEncoder
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.controlnet import HINT, ControlNet, HintEmbedding
from sdjax.nn.dpt.depth import DepthNetwork
from sdjax.nn.lllite import expected_lllite
from sdjax.nn.parameter import shapes
from sdjax.nn.t2i_adapter import T2IAdapter
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder

Network = Config | ControlNetConfig | LLLiteConfig | T2IAdapterConfig  # of a checkpoint, or beside one


def expected_params(configs: Mapping[str, Config]) -> dict[str, Params]:
    """The shapes of every parameter of the networks: {component: nested dict of `jax.ShapeDtypeStruct`}."""
    return {name: expected_network(config) for name, config in configs.items()}


def expected_network(config: Network) -> Params:
    """The shapes of every parameter of one network, a nested dict of `jax.ShapeDtypeStruct`."""
    with settled():
        return _EXPECTED[type(config)](config)


def _expected_text(config: ClipTextConfig) -> Params:
    ids = jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32)
    return shapes(ClipTextEncoder(config), ids)


def _expected_unet(config: UNetConfig) -> Params:
    side = 2 ** (config.levels - 1)
    return shapes(UNet(config), _array(1, side, side, config.in_channels), _array(1), _conditions(config))


def _array(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _conditions(config: UNetConfig) -> Conditions:
    # The pooled text's width and the number of time ids enter the shapes by their sum alone.
    width = config.projection_class_embeddings_input_dim or 0
    return Conditions(
        _array(1, 1, config.cross_attention_dim),
        added=Added(_array(1, width), _array(1, 0)) if config.addition_embed_type == "text_time" else None,
        guidance=_array(1, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
        class_labels=_labels(config),
    )


def _labels(config: UNetConfig) -> Any:
    if config.class_embed_type == "projection":
        return _array(1, config.projection_class_embeddings_input_dim or 0)
    classes = config.class_embed_type is not None or config.num_class_embeds is not None
    return jax.ShapeDtypeStruct((1,), jnp.int32) if classes else None


def _expected_vae(config: VaeConfig) -> Params:
    pixels = _array(1, config.factor, config.factor, 3)
    return shapes(Autoencoder(config), pixels)


def _expected_vision(config: ClipVisionConfig) -> Params:
    pixels = _array(1, config.image_size, config.image_size, 3)
    return shapes(ClipVisionEncoder(config), pixels)


def _expected_depth(config: DepthConfig) -> Params:
    pixels = _array(1, config.image_size, config.image_size, 3)
    return shapes(DepthNetwork(config), pixels)


def _expected_controlnet(config: ControlNetConfig) -> Params:
    unet, types = config.unet, config.num_control_type
    side = 2 ** (unet.levels - 1)
    maps = () if types is None else (1,)
    hint = _array(1, *maps, side, side, unet.block_out_channels[0])
    modes = None if types is None else jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = shapes(
        ControlNet(config), _array(1, side, side, unet.in_channels), _array(1), _conditions(unet), hint, modes
    )
    picture = _array(1, config.factor, config.factor, config.conditioning_channels)
    return {**made, HINT: shapes(HintEmbedding(config), picture)}


def _expected_t2i_adapter(config: T2IAdapterConfig) -> Params:
    side = 8 * config.downscale_factor
    return shapes(T2IAdapter(config), _array(1, side, side, config.in_channels))


_EXPECTED: dict[type, Callable[[Any], Params]] = {
    ClipTextConfig: _expected_text,
    ClipVisionConfig: _expected_vision,
    ControlNetConfig: _expected_controlnet,
    DepthConfig: _expected_depth,
    LLLiteConfig: expected_lllite,
    T2IAdapterConfig: _expected_t2i_adapter,
    UNetConfig: _expected_unet,
    VaeConfig: _expected_vae,
}
