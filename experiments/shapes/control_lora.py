"""A ControlNet that is the U-Net's own way down with low-rank factors beside its kernels: in training, and as a file.

What is learnt is two trees:

    whole      the convolutions of the map, the zero convolutions, and of the copy every bias and norm
    factors    of every kernel of the copy: A and B of `sdjax.train.methods.low_rank`, rank r, with scale 1

The file is what Stability AI published as Control-LoRA (https://huggingface.co/stabilityai/control-lora): the original
layout's names (`sdjax.weights.ldm`), `.down` `r i h w` and `.up` `o r 1 1` in place of a kernel (`r i` and `o r` of a
linear layer), the rest as it is, and a tensor `lora_controlnet` that says what the file is. It means nothing without
the U-Net that it was trained on. Since this U-Net is of no published family, a config.json lies beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.shapes import models
from sdjax.config.controlnet import ControlNetConfig
from sdjax.core import tree
from sdjax.core.files import write
from sdjax.core.keys import key
from sdjax.nn.controlnet import HINT, init_from_unet
from sdjax.train.methods import low_rank
from sdjax.train.methods.controlnet import COMPONENT
from sdjax.train.methods.lora import LoRA
from sdjax.weights import ldm, names
from sdjax.weights.write import Draft, write_file, write_tensors

_WAY_UP = ("out_channels", "up_block_types")
CONFIG_JSON: dict[str, Any] = {name: value for name, value in models.UNET_JSON.items() if name not in _WAY_UP} | {
    "_class_name": "ControlNetModel",
    "conditioning_embedding_out_channels": [8, 16, 32, 64],
}
"""The convolutions of the map are narrower than the published (16, 32, 96, 256), which here would cost as much as the
whole U-Net."""
CONFIG = ControlNetConfig.from_dict(CONFIG_JSON)
FILE = "diffusion_pytorch_model.safetensors"
MARK = "lora_controlnet"
_OUTSIDE = (HINT, "controlnet_down_blocks.", "controlnet_mid_block")
_COPIED = ("conv_in", "time_embedding", "down_blocks.", "mid_block")

Trained = dict[str, Any]
"""{"whole": a tree, "factors": {path: {"down": {"kernel"}, "up": {"kernel"}}}}; kernels, for the optimiser."""


@dataclass(frozen=True)
class TrainControlLora:
    """The method (`sdjax.train.methods`): both trees learn, and what they make of the U-Net's parameters takes part."""

    rank: int

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Trained:
        """See `Method`."""
        return fresh(params["unet"], self.rank, key)

    def join(self, trainable: Trained, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Method`."""
        return {**params, COMPONENT: worn(params["unet"], trainable)}

    def write(self, trainable: Trained, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """See `Method`."""
        del params
        save(folder, trainable, metadata)
        return folder


def fresh(unet: Mapping[str, Any], rank: int, key: jax.Array) -> Trained:
    """Both trees before the first step, when the net gives zeros; unet: the U-Net's parameters, float32."""
    net = init_from_unet(unet, CONFIG, key)
    whole = {path: leaf for path, leaf in tree.flatten(net).items() if _is_whole(path)}
    copied = {name: module for name, module in net.items() if name.startswith(_COPIED)}
    factors = LoRA(rank, layers=(("unet", ""),)).start({"unet": copied}, key)["unet"]
    apart = {path: {side: {"kernel": array} for side, array in one.items()} for path, one in factors.items()}
    return {"whole": tree.unflatten(whole), "factors": apart}


def worn(unet: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """The ControlNet's parameters: the U-Net's kernels with the factors beside them, and what is whole."""
    copied = {name: module for name, module in unet.items() if name.startswith(_COPIED)}
    joined = tree.unflatten(tree.flatten(copied) | tree.flatten(trained["whole"]))
    factors = {path: {side: one[side]["kernel"] for side in one} for path, one in trained["factors"].items()}
    return low_rank.worn(joined, factors, 1.0)


def tensors(trained: Trained) -> dict[str, np.ndarray]:
    """What the file holds, float16."""
    modules = _modules()
    made = {
        ldm.renamed(names.tensor_name(path), modules): _turned(path, np.asarray(leaf))
        for path, leaf in tree.flatten(trained["whole"]).items()
    }
    for path, one in trained["factors"].items():
        name = ldm.renamed(f"{path}.weight", modules).removesuffix(".weight")
        down, up = np.asarray(one["down"]["kernel"]), np.asarray(one["up"]["kernel"])
        made[f"{name}.down"] = down.transpose(-1, -2, *range(down.ndim - 2))
        made[f"{name}.up"] = up.T.reshape(*up.T.shape, *[1] * (down.ndim - 2))
    # Contiguous: safetensors' own writer for NumPy takes a transposed array's bytes as they lie in memory.
    return {name: array.astype(np.float16, order="C") for name, array in made.items()} | {MARK: np.zeros(1, np.float16)}


def save(folder: Path, trained: Trained, metadata: Mapping[str, str]) -> None:
    """Writes the net's file and its config.json into a folder, which is made where it is missing. Raises OSError."""
    written = {name: Draft.of(array) for name, array in tensors(trained).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write((json.dumps(CONFIG_JSON, indent=2) + "\n").encode(), folder / "config.json", "the net")
    write_file(folder / FILE, partial(write_tensors, written, metadata))


def untensors(named: Mapping[str, np.ndarray], unet: Mapping[str, Any]) -> Trained:
    """Both trees, float32, of what `tensors` wrote, to train on or to run; unet: the U-Net's parameters.

    Files by others `sdjax.load_controlnet` reads. Raises KeyError where a tensor is missing.
    """
    shapes = jax.eval_shape(lambda: fresh(unet, 1, key(0)))
    modules, whole = _modules(), {}
    for path in tree.flatten(shapes["whole"]):
        stored = np.asarray(named[ldm.renamed(names.tensor_name(path), modules)], np.float32)
        whole[path] = stored.transpose(*range(2, stored.ndim), 1, 0) if path[-1] == "kernel" else stored
    factors = {path: _factors(named, ldm.renamed(f"{path}.weight", modules)) for path in shapes["factors"]}
    return {"whole": tree.unflatten(whole), "factors": factors}


def _factors(named: Mapping[str, np.ndarray], weight: str) -> dict[str, dict[str, np.ndarray]]:
    name = weight.removesuffix(".weight")
    down, up = (np.asarray(named[f"{name}.{side}"], np.float32) for side in ("down", "up"))
    turned = down.transpose(*range(2, down.ndim), 1, 0)
    return {"down": {"kernel": turned}, "up": {"kernel": up.reshape(len(up), -1).T}}


def _is_whole(path: tree.Path) -> bool:
    return path[0].startswith(_OUTSIDE) or path[-1] != "kernel"


def _turned(path: tree.Path, array: np.ndarray) -> np.ndarray:
    """A parameter in torch's order of axes."""
    return array.transpose(-1, -2, *range(array.ndim - 2)) if path[-1] == "kernel" else array


def _modules() -> ldm.Modules:
    """The original name of every module of the net by diffusers' name."""
    steps = len(CONFIG.conditioning_embedding_out_channels) - 1
    found = dict(ldm.unet_modules(CONFIG.unet)) | {f"{HINT}.conv_in": "input_hint_block.0"}
    found |= {f"{HINT}.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(2 * steps)}
    found |= {f"{HINT}.conv_out": f"input_hint_block.{4 * steps + 2}", "controlnet_mid_block": "middle_block_out.0"}
    return found | {
        f"controlnet_down_blocks.{j}": f"zero_convs.{j}.0"
        for j in range(sum(CONFIG.unet.layers_per_block) + CONFIG.unet.levels)
    }
