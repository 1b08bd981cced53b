"""ControlNet-LLLite (kohya-ss/sd-scripts, networks/control_net_lllite.py): a small network before attention's layers.

    x' = x + m up(relu(mid([c, relu(down(x))])))                                                            (1)

stands before a dense layer of the U-Net, whose input is x `l d`: c `l e` are the picture's tokens, made once a run by
convolutions over the picture at full size, each layer its own. So nothing is added to the U-Net's skips, and its way
down sees the picture itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.config.lllite import STRIDES, LLLiteConfig, LLLiteModule
from sdjax.core.tree import Path
from sdjax.nn.layers import Conv
from sdjax.nn.linear import linear

Layer = Mapping[str, Any]  # kernel and bias of a dense layer
STEPS = ("down.0", "mid.0", "up.0")


class LLLiteTokens(nn.Module):
    """c of equation 1 for every layer: a picture `b H W 3`, [-1, 1] -> {path of the layer: `b l e`}.

    H and W must be those of the picture that is painted: one token is one of the layer's.
    """

    config: LLLiteConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, picture: jax.Array) -> dict[Path, jax.Array]:
        made = {}
        for one in self.config.modules:
            x = Conditioning(one, self.dtype, name=".".join(one.path))(picture)
            made[one.path] = x.reshape(x.shape[0], -1, x.shape[-1])
        return made


class Conditioning(nn.Module):
    """The convolutions over the picture before one layer, without padding, ReLU between: `b H W 3 -> b h w e`."""

    module: LLLiteModule
    dtype: DTypeLike

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        x, strides = picture, STRIDES[self.module.depth]
        for i, stride in enumerate(strides):
            last = i == len(strides) - 1
            width = self.module.condition if last else self.module.condition // 2
            name = f"conditioning1.{2 * i}"  # the ReLU between them has a number too
            x = Conv(width, self.dtype, size=stride, stride=stride, padding=((0, 0), (0, 0)), name=name)(x)
            x = x if last else jax.nn.relu(x)
        return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LLLiteStep:
    """Equation 1, among the parameters of the layer that it stands before (see `nn.linear`).

    Attributes:
      tokens: c, `b l e`, or `1 l e` for all pictures. down, mid, up: kernel and bias of each.
      scale: m, float32 `b`, or one number for all pictures.
    """

    tokens: jax.Array | np.ndarray
    down: Layer
    mid: Layer
    up: Layer
    scale: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `b l d` -> `b l d`, in x's dtype. Raises ValueError where the picture had another size than x."""
        if self.tokens.shape[1] != x.shape[1]:
            raise ValueError(
                f"an LLLite was shown a picture of {self.tokens.shape[1]} tokens where the U-Net's has {x.shape[1]}: "
                "both must be of one size, a multiple of 32"
            )
        tokens = jnp.broadcast_to(self.tokens.astype(x.dtype), (*x.shape[:2], self.tokens.shape[-1]))
        inner = jax.nn.relu(linear(self.down, x, x.dtype, STEPS[0]))
        inner = jax.nn.relu(linear(self.mid, jnp.concatenate([tokens, inner], axis=-1), x.dtype, STEPS[1]))
        scale = jnp.asarray(self.scale, x.dtype)
        return x + scale.reshape(*scale.shape, *[1] * (x.ndim - scale.ndim)) * linear(self.up, inner, x.dtype, STEPS[2])


def lllite_steps(params: Mapping[str, Any], tokens: Mapping[Path, jax.Array], scale: Any) -> dict[Path, LLLiteStep]:
    """What stands before every layer, by its path, for `nn.linear.put_before`.

    params: of the LLLite. tokens: of `LLLiteTokens`. scale: float32 `b`, or one number.
    """

    def step(path: Path) -> LLLiteStep:
        down, mid, up = (params[".".join(path)][name] for name in STEPS)
        return LLLiteStep(tokens[path], down, mid, up, scale)

    return {path: step(path) for path in tokens}


def expected_lllite(config: LLLiteConfig) -> dict[str, Any]:
    """The shapes of every parameter of an LLLite, by the path of the layer; nothing is computed."""
    return {".".join(one.path): _expected_module(one) for one in config.modules}


def _expected_module(one: LLLiteModule) -> dict[str, Any]:
    def layer(*shape: int) -> Layer:
        kernel, bias = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
        return {"kernel": kernel, "bias": bias}

    strides = STRIDES[one.depth]
    widths = [3, *[one.condition // 2] * (len(strides) - 1), one.condition]
    made = {f"conditioning1.{2 * i}": layer(k, k, widths[i], widths[i + 1]) for i, k in enumerate(strides)}
    dense = ((one.features, one.inner), (one.condition + one.inner, one.inner), (one.inner, one.features))
    return made | {name: layer(*shape) for name, shape in zip(STEPS, dense, strict=True)}
