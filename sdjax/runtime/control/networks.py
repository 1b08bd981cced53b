"""Which network a config means that steers a U-Net from beside it. A new kind is one line here."""

from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike

from sdjax.config.controlnet import ControlNetConfig
from sdjax.config.lllite import LLLiteConfig
from sdjax.config.t2i_adapter import T2IAdapterConfig
from sdjax.nn.control import ControlNetwork
from sdjax.runtime.control.controlnet import ControlNetBeside
from sdjax.runtime.control.lllite import LLLiteBeside
from sdjax.runtime.control.t2i_adapter import T2IBeside

NETWORKS: dict[type, Callable[[Any, DTypeLike], ControlNetwork]] = {
    ControlNetConfig: ControlNetBeside,
    T2IAdapterConfig: T2IBeside,
    LLLiteConfig: LLLiteBeside,
}


def network_of(config: Any, dtype: DTypeLike) -> ControlNetwork:
    """The network that a config is of, computing in `dtype`. Raises KeyError where it is none."""
    return NETWORKS[type(config)](config, dtype)
