"""A parameter as a file of control has it: whole, or as what it adds to the U-Net's own.

    W = W_file          nearly every file
    W = W_unet + D      a difference file, for whatever the U-Net has too                                   (1)
    W = W_unet + U V    a Control-LoRA, of a kernel in thin factors (Stability AI 2023)                     (2)
    W = W_unet          a Control-LoRA, of what its file does not have

The U-Net is the one that the net is used with, in the dtype that its parameters are stored in: sums are taken in
float32 and cast once.

Sources: ComfyUI's comfy/controlnet.py (load_controlnet, ControlLora); lllyasviel/ControlNet tool_transfer_control.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.core import tree
from sdjax.core.tree import Path
from sdjax.weights import names

Change = Callable[[np.ndarray], np.ndarray]  # of the U-Net's parameter


@dataclass(frozen=True)
class Difference:
    """D of equation 1, in our order of axes."""

    added: np.ndarray

    def __call__(self, own: np.ndarray) -> np.ndarray:
        """The parameter, from the U-Net's, as wide as that is stored."""
        return _sum(own, self.added)


@dataclass(frozen=True)
class Factors:
    """U and V of equation 2 as they lie in the file: `[o, r]` and `[r, i]`, or of a convolution `[r, i, h, w]`."""

    up: np.ndarray
    down: np.ndarray

    def __call__(self, own: np.ndarray) -> np.ndarray:
        """The parameter, from the U-Net's, as wide as that is stored."""
        up, down = (np.asarray(one, np.float32) for one in (self.up, self.down))
        product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return _sum(own, names.from_file(("kernel",), product.reshape(len(up), *down.shape[1:])))


def unchanged(own: np.ndarray) -> np.ndarray:
    """The U-Net's own parameter."""
    return own


def _sum(own: np.ndarray, added: np.ndarray) -> np.ndarray:
    total = np.asarray(own, np.float32)
    return (total + np.asarray(added, np.float32).reshape(total.shape)).astype(own.dtype)


@dataclass(frozen=True)
class Weights:
    """The parameters of one net by path: those that are whole, and the others by what makes them of the U-Net's.

    Attributes:
      whole: arrays, in our order of axes. changes: of the rest. shapes: that each of them must have.
    """

    whole: Mapping[Path, np.ndarray]
    changes: Mapping[Path, Change]
    shapes: Mapping[Path, tuple[int, ...]]

    def of(self, unet: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The parameters; unet: of the U-Net that the net `name` is used with, as stored.

        Raises ValueError where the U-Net is of another family.
        """
        if not self.changes:
            return tree.unflatten(self.whole)
        theirs = tree.flatten(unet)
        made = {path: change(self._own(theirs, path, name)) for path, change in self.changes.items()}
        return tree.unflatten({**self.whole, **made})

    def _own(self, unet: Mapping[Path, Any], path: Path, name: str) -> np.ndarray:
        """The U-Net's parameter at a path; of one that sees a mask too, what its first convolution does to latents."""
        found, shape = unet.get(path), self.shapes[path]
        if found is not None and path == ("conv_in", "kernel"):
            found = found[:, :, : shape[2]]
        if found is None or found.size != np.prod(shape):
            held = "none" if found is None else f"one of {list(found.shape)}"
            raise ValueError(
                f"{name} adds to the U-Net's own {names.tensor_name(path)} of {list(shape)}, and this U-Net has {held}: "
                "it belongs to another family of models"
            )
        return np.asarray(found).reshape(shape)
