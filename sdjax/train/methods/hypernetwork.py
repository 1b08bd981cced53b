"""Hypernetwork: small networks learn that rewrite what attention makes its keys and values from.

    x' = x + net(x),      net = step_n(.. step_1(x)),      step_i(h) = act(h W_i + b_i), the last without act  (1)

before `to_k` and before `to_v` of every attention whose input is as wide as one of `widths` (A1111's hypernetworks; see
`nn.hypernetwork`). One pair of networks a width, shared by all attentions of it: the text's width, and those of the
U-Net's levels where pictures attend to themselves.

A1111 begins all W_i as Gaussians of standard deviation 0.01. Here the last begins as 0 in place of that, so that the
first step's model is the base; the biases begin as 0 in both. Written as safetensors with the names and settings that
`sdjax.load_adapter` reads: A1111 itself reads these tensors from a pickle, which no program here makes.

Source: AUTOMATIC1111/stable-diffusion-webui modules/hypernetworks/hypernetwork.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import hypernetwork
from sdjax.core.errors import unknown
from sdjax.core.tree import Params
from sdjax.nn.hypernetwork import ACTIVATIONS, HypernetworkLayer, Step, input_widths, put_before
from sdjax.train.methods.beside import FILE
from sdjax.weights.write import make_folder

STANDARD_DEVIATION = 0.01  # of the kernels before training: A1111's "Normal"
Layer = Mapping[str, Mapping[str, jax.Array]]  # by the step's number: "kernel" `i o`, "bias" `o`


@dataclass(frozen=True)
class Hypernetwork:
    """Equation 1.

    Attributes:
      widths: of the inputs that are rewritten; () is all that the U-Net has.
      structure: the widths before, between and behind the steps, as multiples of the input's.
      activation: a key of `nn.hypernetwork.ACTIVATIONS`.
    """

    widths: tuple[int, ...] = ()
    structure: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"

    def __post_init__(self) -> None:
        if len(self.structure) < 2 or self.structure[0] != 1 or self.structure[-1] != 1 or min(self.structure) <= 0:
            raise ValueError(
                f"structure must lead from 1 to 1 over numbers above 0, as (1, 2, 1), not {self.structure}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown(f"activation {self.activation!r} is unknown", self.activation, ACTIVATIONS))

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`: by width, "k" or "v", and the step's number, "kernel" `i o` and "bias" `o`."""
        there = sorted(input_widths(params["unet"]))
        if others := [str(width) for width in self.widths if width not in there]:
            said = f"no attention of this U-Net takes in {', '.join(others)} numbers"
            raise ValueError(unknown(said, others[0], [str(width) for width in there]))
        made: dict[str, dict[str, Layer]] = {}
        for i, width in enumerate(self.widths or there):
            keys = jax.random.split(jax.random.fold_in(key, i))
            made[str(width)] = {use: self._started(width, own) for use, own in zip("kv", keys, strict=True)}
        return made

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        layers = {int(width): (self._layer(pair["k"]), self._layer(pair["v"])) for width, pair in trainable.items()}
        return {**params, "unet": put_before(params["unet"], layers)}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`: float32, FILE in the folder. Raises CheckpointError, also for numbers that are not finite."""
        stride = 1 if self.activation == "linear" else 2  # torch's Sequential counts activations too
        tensors: dict[str, np.ndarray] = {}
        for width, pair in jax.device_get(trainable).items():
            for use, layer in pair.items():
                for number, step in layer.items():
                    name = f"{width}.{use}.linear.{int(number) * stride}"
                    tensors[f"{name}.weight"] = np.ascontiguousarray(step["kernel"].T, np.float32)
                    tensors[f"{name}.bias"] = np.asarray(step["bias"], np.float32)
        path = folder / FILE
        made = hypernetwork.Hypernetwork.read(path.stem, tensors, self.described() | dict(metadata), str(path))
        make_folder(folder)
        made.save(path)
        return path

    def described(self) -> dict[str, str]:
        """The settings that a file needs to be read, in A1111's words."""
        return {
            "layer_structure": json.dumps(self.structure),
            "activation_func": self.activation,
            "is_layer_norm": "False",
            "activate_output": "False",
            "use_dropout": "False",
        }

    def _started(self, width: int, key: jax.Array) -> Layer:
        inner = [int(width * one) for one in self.structure]
        made, last = {}, len(inner) - 2
        for i, shape in enumerate(zip(inner, inner[1:], strict=False)):
            drawn = STANDARD_DEVIATION * jax.random.normal(jax.random.fold_in(key, i), shape)
            made[str(i)] = {"kernel": jnp.zeros(shape) if i == last else drawn, "bias": jnp.zeros(shape[1])}
        return made

    def _layer(self, layer: Layer) -> HypernetworkLayer:
        steps = tuple(Step(layer[str(i)]["kernel"], layer[str(i)]["bias"]) for i in range(len(layer)))
        return HypernetworkLayer(steps, jnp.float32(1), activation=self.activation, activate_output=False)
