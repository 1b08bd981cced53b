"""The tensors of one module of an adapter's file, taken one by one, so that none is left unread.

Names are the canonical ones, without the module's: "lora_up.weight", "alpha" .. Messages name the tensor and what it
should be; whoever knows the file and the module adds them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sdjax.adapters.kinds.delta import Delta

CONVENTIONS = ("a1111", "lycoris", "peft")


class Parts:
    """One module's tensors. What has been taken is no longer there."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.names = list(tensors)
        self.left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str) -> np.ndarray:
        """A tensor that must be there; floating-point numbers, one at least."""
        if name not in self.left:
            raise ValueError(f"{name} is missing beside {', '.join(self.names)}")
        array = self.left.pop(name)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} holds {array.dtype}, not floating-point numbers")
        if array.size == 0:
            raise ValueError(f"{name} is empty: its shape is {list(array.shape)}")
        return array

    def maybe(self, name: str) -> np.ndarray | None:
        """A tensor that may be there."""
        return self.take(name) if name in self.left else None

    def matrix(self, name: str) -> np.ndarray:
        """A tensor of two axes that must be there; a 1x1 convolution's counts as one."""
        array = self.take(name)
        if array.ndim < 2 or array.shape[2:] not in ((), (1, 1)):
            raise ValueError(f"{name} is {list(array.shape)}, and must be a matrix")
        return array.reshape(array.shape[:2])

    def number(self, name: str) -> float | None:
        """A single number that may be there, finite."""
        if name not in self.left:
            return None
        array = self.left.pop(name)
        if array.size != 1:
            raise ValueError(f"{name} is {list(array.shape)}, and must be one number")
        value = float(array.reshape(()).astype(np.float64))
        if not np.isfinite(value):
            raise ValueError(f"{name} is {value}, and must be a finite number")
        return value

    def strength(self, rank: int) -> float:
        """What all is multiplied by: A1111's `scale` if there is one, else alpha / rank; without alpha it is 1."""
        scale, alpha = self.number("scale"), self.number("alpha")
        for name, value in (("scale", scale), ("alpha", alpha)):
            if value == 0:
                raise ValueError(
                    f"{name} is 0, which makes nothing of this module (A1111 and ComfyUI take it so; kohya's trainer "
                    f"means the rank by it): store the {name} that was meant, or leave it out, which means a scale of 1"
                )
        if scale is not None:
            return scale
        return 1.0 if alpha is None else alpha / rank


class Kind(NamedTuple):
    """A kind of adapter as `read_module` knows it.

    Attributes:
      marks: a module that has any of these is of this kind. others: what else it may have.
      read: takes the tensors, by a convention; gives what is done to the module's "weight" and "bias".
    """

    marks: tuple[str, ...]
    others: tuple[str, ...]
    read: Callable[[Parts, str], dict[str, Delta]]


def working(array: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """An array in the dtype in which is computed: float64 for a weight of float64, else float32."""
    return array.astype(np.float64 if weight.dtype == np.float64 else np.float32, copy=False)


def same_rank(**ranks: int) -> None:
    """Raises ValueError where these are not all the same."""
    if len(set(ranks.values())) > 1:
        told = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        raise ValueError(f"the ranks do not fit: {told}")
