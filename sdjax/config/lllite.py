"""ControlNet-LLLite: which of a U-Net's layers it stands before, and how large it is at each."""

from dataclasses import dataclass

from sdjax.core.tree import Path

# Kernel and stride of each convolution over the picture, by depth: together 8, 16 and 32 pixels to one token.
STRIDES: dict[int, tuple[int, ...]] = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}


@dataclass(frozen=True)
class LLLiteModule:
    """What stands before one dense layer.

    Attributes:
      path: of that layer in the U-Net's parameters.
      depth: a key of STRIDES.
      condition, inner, features: widths of the picture's tokens, in between, and of the layer's input.
    """

    path: Path
    depth: int
    condition: int
    inner: int
    features: int


@dataclass(frozen=True)
class LLLiteConfig:
    """All of them, in the order of the file; it says nothing else of itself."""

    modules: tuple[LLLiteModule, ...]
    in_channels: int = 3  # of the picture that it looks at

    @property
    def outputs(self) -> int:
        """How many strengths it has: one, for all layers."""
        return 1
