"""What steers a model's U-Net from beside it, from its file: the network that it is, and that one's parameters."""

from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike

from sdjax.adapters.control import ControlAdapter
from sdjax.adapters.image_prompt import ImagePromptAdapter
from sdjax.core.tree import Params
from sdjax.model.spec import ModelSpec
from sdjax.nn.control import ControlNetwork
from sdjax.nn.image_prompt import attention_paths
from sdjax.runtime.control.image_prompt import ImagePromptBeside
from sdjax.runtime.control.networks import network_of

Steerer = ControlAdapter | ImagePromptAdapter


def bind(adapter: Steerer, spec: ModelSpec, unet: Mapping[str, Any], dtype: DTypeLike) -> tuple[ControlNetwork, Params]:
    """The network beside the U-Net of a model, computing in `dtype`, and its parameters as they are stored.

    unet: the U-Net's parameters as stored, against which some files are written. Raises ValueError where the adapter is
    for another model.
    """
    if isinstance(adapter, ControlAdapter):
        return network_of(adapter.config, dtype), adapter.params(unet)
    bound = adapter.bind(spec.expected_params["unet"], spec.name)
    return ImagePromptBeside(attention_paths(spec.expected_params["unet"]), dtype), bound["attention"]
