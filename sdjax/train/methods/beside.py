"""Beside: what all methods share whose parameters stand beside the kernels of chosen layers: LoRA and its relatives.

A kind of adapter says four things of one layer: how its factors begin (`factors`), what the layer is with them
(`changed`), what its file calls them (`tensors`), and what a file says of all of them (`described`). The rest is here:
which layers (`layers`), the tree of what learns, and the file.

    trainable[component][path of the layer] = {name of the factor: float32 array}                           (1)

A file has kohya's names, which A1111, ComfyUI, diffusers and `sdjax.load_adapter` read: for SDXL by SGM's block names,
as A1111 wants them. `sdjax.load_adapter(file).save(path, "peft")` writes LoRA and DoRA as PEFT does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.adapters import algebra, families
from sdjax.adapters.module_names import Module
from sdjax.adapters.names import TE, TE1, TE2, UNET
from sdjax.adapters.table import modules_of
from sdjax.core.errors import unknown
from sdjax.core.tree import Params
from sdjax.train.methods import low_rank
from sdjax.train.methods.layers import UNET_ATTENTION, Layers, chosen
from sdjax.weights.write import make_folder

FILE = "adapter.safetensors"
DTYPES = ("float32", "float16", "bfloat16")
Factors = Mapping[str, jax.Array]  # of one layer
_ARCHITECTURES = {families.SD1: "stable-diffusion-v1", families.SDXL: "stable-diffusion-xl-v1-base"}


@dataclass(frozen=True)
class Beside:
    """See above.

    Attributes:
      rank: r, of every layer's factors. alpha: a change counts alpha / r; None is r. layers: see `layers`.
      dtype: of the file's tensors, one of DTYPES.
    """

    rank: int = 16
    alpha: float | None = None
    layers: Layers = UNET_ATTENTION
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"rank must be a whole number from 1 on, not {self.rank!r}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number above 0, not {self.alpha!r}; None is the rank")
        if self.dtype not in DTYPES:
            raise ValueError(unknown(f"dtype {self.dtype!r} is unknown", self.dtype, DTYPES))

    @property
    def written_alpha(self) -> float:
        """What a file says, from which readers make the scale alpha / r."""
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def scale(self) -> float:
        """What a change counts."""
        return self.written_alpha / self.rank

    def factors(self, kernel: Any, key: jax.Array) -> Factors:
        """Those of one layer before the first step, which change nothing; kernel: `i o` or HWIO."""
        raise NotImplementedError

    def changed(self, layer: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
        """One layer's parameters with its factors taking part."""
        raise NotImplementedError

    def tensors(self, factors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, np.ndarray]:
        """One layer's factors as a file has them, by what its names end in, in torch's order of axes."""
        raise NotImplementedError

    def described(self) -> dict[str, str]:
        """What the file says of itself, in kohya's and LyCORIS' words."""
        raise NotImplementedError

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """See `Method`. Each layer's factors depend on the key and on its place among those chosen."""
        picked = chosen(params, self.layers)
        places = [(component, path) for component, own in picked.items() for path in own]
        made: dict[str, dict[str, Factors]] = {component: {} for component in picked}
        for i, (component, path) in enumerate(places):
            made[component][path] = self.factors(picked[component][path]["kernel"], jax.random.fold_in(key, i))
        return made

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        own = {name: low_rank.changed(params[name], factors, self.changed) for name, factors in trainable.items()}
        return {**params, **own}

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`: FILE in the folder. metadata: goes before what is said here.

        Raises ValueError for numbers that are not finite or leave the range of `dtype`, CheckpointError where the file
        cannot be written.
        """
        parts = _parts(params)
        modules: dict[Module, dict[str, np.ndarray]] = {}
        for component, own in jax.device_get(trainable).items():
            kernels = low_rank.layers(params[component])
            for path, factors in own.items():
                module = Module(parts[component], path.replace(".", "_"))
                modules[module] = self.tensors(factors, kernels[path]["kernel"])
        family = families.family_of_params(modules_of(params[UNET]))[0]
        said = self.described() | _spec(family, metadata) | dict(metadata)
        adapter = algebra.build(FILE.partition(".")[0], family, modules, said, jnp.dtype(self.dtype))
        make_folder(folder)
        adapter.save(folder / FILE, "kohya", model=params)
        return folder / FILE


def as_weight(kernel: Any) -> Any:
    """A kernel `i o` or HWIO in torch's order of axes, `o i` or `o i h w`; `as_kernel` undoes it."""
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2))


def as_kernel(weight: Any) -> Any:
    """A weight `o i` or `o i h w` in ours."""
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def weight_shape(kernel: Any) -> tuple[int, ...]:
    """The shape that `as_weight` gives."""
    *spatial, inputs, outputs = kernel.shape
    return (outputs, inputs, *spatial)


def _parts(params: Mapping[str, Any]) -> dict[str, str]:
    """What files call the components: a text encoder that is alone has no number."""
    if {"text_encoder", "text_encoder_2"} <= params.keys():
        return {UNET: UNET, "text_encoder": TE1, "text_encoder_2": TE2}
    return {UNET: UNET, "text_encoder": TE, "text_encoder_2": TE}


def _spec(family: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """What Stability's ModelSpec (github.com/Stability-AI/ModelSpec) wants; nothing where no name is known to be true.

    Stable Diffusion 2 has two, by what it predicts, which parameters do not tell.
    """
    if family not in _ARCHITECTURES:
        return {}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES[family]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": metadata.get("ss_output_name", "adapter"),
    }
