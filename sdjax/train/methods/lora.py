"""LoRA: two thin matrices beside each chosen kernel learn; the model's own parameters stay as they are.

    y = x K + s (x A) B,      s = alpha / r,    or alpha / sqrt(r)  (rsLoRA)                                (1)

(Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732, for the second.) A begins uniform within
1 / sqrt(n), n the numbers that go into one of the kernel's outputs, and B as 0: the first step's model is the base to
the last bit. Beside a convolution A is one too, and B is 1 x 1: LoCon. See `train.low_rank`.

Nothing of a kernel has a gradient, or is multiplied with anything but x. Readers divide alpha by r, so that a file of
rsLoRA says alpha sqrt(r).

For LoRA+ (Hayou et al. 2024, arXiv:2402.12354) give the leaves whose path ends with "up" a rate of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sdjax.train.methods import low_rank
from sdjax.train.methods.beside import Beside, Factors


@dataclass(frozen=True)
class LoRA(Beside):
    """Equation 1; rank_stabilised: whether alpha is divided by the root of the rank."""

    rank_stabilised: bool = False

    @property
    def written_alpha(self) -> float:
        """See `Beside`."""
        return super().written_alpha * (self.rank**0.5 if self.rank_stabilised else 1)

    def factors(self, kernel: Any, key: jax.Array) -> Factors:
        """See `Beside`: "down", A, `i r` or HWIO; "up", B, `r o`."""
        return low_rank.start(kernel.shape, self.rank, key)

    def changed(self, layer: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
        """See `Beside`: the factors stand beside the kernel, where every layer reads them (`nn.linear`)."""
        return low_rank.beside(layer, factors, self.scale)

    def tensors(self, factors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, np.ndarray]:
        """See `Beside`."""
        return low_rank.layer_tensors(factors, self.written_alpha)

    def described(self) -> dict[str, str]:
        """See `Beside`."""
        return {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": f"{self.written_alpha:g}",
        }
