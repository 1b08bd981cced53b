"""Hypernetworks, as a layer sees them: a small network that rewrites what keys and values are made from.

A hypernetwork in Stable Diffusion (NovelAI 2022; AUTOMATIC1111's modules/hypernetworks/hypernetwork.py) does not touch
the weights. It stands before `to_k` and before `to_v` of an attention, and adds to their input x, `.. d`,

    x' = x + m net(x)                                                                                       (1)
    net = step_n(.. step_2(step_1(x)))        step_i(h) = norm(act(h W_i + b_i))                            (2)

with m the user's strength. The activation and the layer norm are there or not as the file's settings say; whether the
last step has an activation is a setting of its own. The text's keys and values are made once before a run
(`attention.cross_keys_values`), and with them all that hypernetworks do to the text: at a step they cost nothing. Those
of a self-attention's width see the picture, and run at every step.

Equation 1 is taken in float32, whatever the U-Net computes in, as A1111 does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.nn import linear
from sdjax.nn.layers import gelu

Array = jax.Array | np.ndarray
EPS = 1e-5  # of torch's LayerNorm
RRELU = (1 / 8 + 1 / 3) / 2  # the mean slope, which torch's RReLU has outside of training

# By torch's class names in small letters, as A1111 finds them; "swish" is A1111's word for Hardswish, and not SiLU.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "leakyrelu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "swish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "silu": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "gelu": gelu,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "softshrink": lambda x: x - jnp.clip(x, -0.5, 0.5),
    "hardshrink": lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0),
    "tanhshrink": lambda x: x - jnp.tanh(x),
    "hardtanh": lambda x: jnp.clip(x, -1, 1),
    "hardsigmoid": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "logsigmoid": jax.nn.log_sigmoid,
    "relu6": lambda x: jnp.clip(x, 0, 6),
    "rrelu": lambda x: jax.nn.leaky_relu(x, RRELU),
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """One step of equation 2: `kernel` W_i, `c o`; `bias` b_i, `o`; of the layer norm `scale` and `shift`, `o`."""

    kernel: Array
    bias: Array
    scale: Array | None = None
    shift: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HypernetworkLayer:
    """What stands before one `to_k` or `to_v`, among its parameters under "before" (see `nn.linear`).

    Attributes:
      steps: of equation 2. scale: m, float32 `b` for x `b ..`, or one number for all pictures; None where `nn.worn`
        has yet to give it. index: which of a picture's strengths is its, where they are given there.
      activation: a key of ACTIVATIONS. activate_output: whether the last step has it too.
    """

    steps: tuple[Step, ...]
    scale: Any
    index: int | None = field(default=None, metadata={"static": True}, kw_only=True)
    activation: str = field(default="linear", metadata={"static": True})
    activate_output: bool = field(default=True, metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Equation 1: x `.. d` -> `.. d`, in x's dtype."""
        wide = x.astype(jnp.float32)
        scale = jnp.asarray(self.scale, jnp.float32)
        scale = scale.reshape(*scale.shape, *[1] * (wide.ndim - scale.ndim))
        return (wide + scale * self._net(wide)).astype(x.dtype)

    def _net(self, h: jax.Array) -> jax.Array:
        """Equation 2."""
        for i, step in enumerate(self.steps):
            h = jnp.dot(h, step.kernel.astype(jnp.float32)) + step.bias.astype(jnp.float32)
            if self.activate_output or i < len(self.steps) - 1:
                h = ACTIVATIONS[self.activation](h)
            if step.scale is not None and step.shift is not None:
                centred = h - h.mean(-1, keepdims=True)
                h = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS) * step.scale + step.shift
        return h


def input_widths(params: Mapping[str, Any]) -> set[int]:
    """The widths of what keys and values are made from in a U-Net's parameters: its text's, and its levels'."""
    return {width for _, width in _layers(params, ())}


def put_before(
    params: Mapping[str, Any], layers: Mapping[int, tuple[HypernetworkLayer, HypernetworkLayer]]
) -> dict[str, Any]:
    """A U-Net's parameters with a hypernetwork's layers before `to_k` and `to_v` of every attention of their width.

    layers: by that width, the one for keys and the one for values. What stands there already goes first. Pure:
    `params` stay as they are, and the arrays are shared.
    """
    found = [(path, layers[width]) for path, width in _layers(params, ()) if width in layers]
    return linear.put_before(params, {path: pair[0 if path[-1] == "to_k" else 1] for path, pair in found})


def has_hypernetwork(params: Mapping[str, Any]) -> bool:
    """Whether a hypernetwork stands in a network's parameters."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, HypernetworkLayer))
    return any(isinstance(leaf, HypernetworkLayer) for leaf in leaves)


def _layers(tree: Mapping[str, Any], above: tuple[str, ...]) -> list[tuple[tuple[str, ...], int]]:
    """Every `to_k` and `to_v` of an attention: its path, and the width of what goes in."""
    found = []
    for name, child in tree.items():
        path = (*above, name)
        if name in ("to_k", "to_v") and above and above[-1] in ("attn1", "attn2"):
            found.append((path, int(child["kernel"].shape[0])))
        elif isinstance(child, Mapping):
            found += _layers(child, path)
    return found
