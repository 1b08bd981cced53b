"""OFT and BOFT: the rows of a weight are turned, in blocks, and keep their lengths and angles.

Qiu et al. 2023, arXiv:2306.07280; Liu et al. 2023, arXiv:2311.06243 (butterflies); as kohya and LyCORIS have them.

    Q = B - B^T       R = (I + Q) (I - Q)^-1       for every block B, `s s`, of `oft_blocks`                (1)

    OFT   `n s s`     F(W)[k s + p] = sum_q R[k][q,p] W[k s + q]                                            (2)
    BOFT  `m n s s`   for j = 0 .. m - 1:   x <- R[j] x in blocks of s, rows that stand 2^j s/2 apart
                      having been brought together and being brought back after                             (3)

An `alpha` is no scale but a constraint: where |Q| of all blocks together exceeds c = alpha o, Q is shortened to it; 0
means none, as LyCORIS stores it. (ComfyUI takes c = alpha.) `oft_diag`, of older files, holds R itself. `rescale`
multiplies each row of what comes out. At other scales than 1 A1111 goes along the straight line from W to F(W), and
LyCORIS turns by R <- I + m (R - I), then rescales: for OFT without `rescale` that is the same.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.parts import Kind, Parts, working
from sdjax.adapters.kinds.relative import Relative
from sdjax.core.tree import Shape


@dataclass(frozen=True, eq=False)
class OFT(Relative):
    """Equations 1 to 3.

    Attributes:
      blocks: `n s s`, or `m n s s` for BOFT. turned: whether they are R already. limit: alpha; 0 for none.
      rescale: `o`, or None. convention: as above.
    """

    blocks: np.ndarray
    turned: bool
    limit: float
    rescale: np.ndarray | None
    convention: str
    rank: ClassVar[None] = None  # type: ignore[misc]

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "OFT" if self.blocks.ndim == 3 else "BOFT"

    @property
    def outputs(self) -> int:
        return self.blocks.shape[-3] * self.blocks.shape[-1]

    def check(self, shape: Shape) -> None:
        if len(shape) not in (2, 4) or shape[0] != self.outputs:
            raise ValueError(f"it is for a weight of {self.outputs} outputs, and this one is {list(shape)}")

    def apply(self, weight: np.ndarray, scale: float) -> np.ndarray:
        if self.convention != "lycoris" or scale == 0:
            return super().apply(weight, scale)
        self.check(weight.shape)
        return self._rotated(weight, scale)

    def full(self, weight: np.ndarray) -> np.ndarray:
        return self._rotated(weight, 1.0)

    def _rotated(self, weight: np.ndarray, scale: float) -> np.ndarray:
        rotation = self.rotation(weight)
        if scale != 1:
            rotation = scale * rotation + (1 - scale) * np.eye(rotation.shape[-1], dtype=rotation.dtype)
        if rotation.ndim == 3:
            found = _in_blocks(rotation.swapaxes(1, 2), weight)
        else:
            found = weight
            for j, stage in enumerate(rotation):
                found = _butterfly(stage, found, 2**j * (rotation.shape[-1] // 2))
        if self.rescale is not None:
            found = found * working(self.rescale, weight).reshape(-1, *[1] * (weight.ndim - 1))
        return found

    def rotation(self, like: np.ndarray) -> np.ndarray:
        """R of equation 1, in the shape of the blocks."""
        blocks = working(self.blocks, like)
        return blocks if self.turned else cayley(blocks - blocks.swapaxes(-1, -2), self.limit * self.outputs)


def cayley(q: np.ndarray, limit: float = 0.0) -> np.ndarray:
    """(I + Q) (I - Q)^-1 of every block of Q, all of which together are first shortened to `limit`, 0 for none."""
    length = np.linalg.norm(q)
    if limit > 0 and length > limit:
        q = q * (limit / length)
    one = np.eye(q.shape[-1], dtype=q.dtype)
    return np.linalg.solve(one - q, one + q)  # the two commute


def _in_blocks(matrices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each of n matrices `s s` times its own s rows."""
    n, s, _ = matrices.shape
    return np.matmul(matrices, rows.reshape(n, s, -1)).reshape(rows.shape)


def _butterfly(stage: np.ndarray, rows: np.ndarray, stride: int) -> np.ndarray:
    """One step of equation 3."""
    rest = rows.shape[1:]
    together = rows.reshape(-1, 2, stride, *rest).swapaxes(1, 2).reshape(rows.shape)
    return _in_blocks(stage, together).reshape(-1, stride, 2, *rest).swapaxes(1, 2).reshape(rows.shape)


def _checked(blocks: np.ndarray, name: str) -> None:
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"{name} is {list(blocks.shape)}, and must be square blocks, [n, s, s] or [m, n, s, s]")
    if blocks.ndim == 4:
        stages, n, s, _ = blocks.shape
        if s % 2 or stages > 64 or (n * s) % (2 ** (stages - 1) * s):
            raise ValueError(f"{name} is {list(blocks.shape)}: {stages} butterflies do not go into {n * s} rows")


def read(parts: Parts, convention: str) -> dict[str, Delta]:
    name = "oft_blocks" if "oft_blocks" in parts else "oft_diag"
    blocks, limit, rescale = parts.take(name), parts.number("alpha"), parts.maybe("rescale")
    _checked(blocks, name)
    if name == "oft_diag" and blocks.ndim != 3:
        raise ValueError(f"oft_diag is {list(blocks.shape)}, and must be [n, s, s]")
    if limit is not None and limit < 0:
        raise ValueError(f"alpha is {limit}; it is how far blocks may turn, and cannot be below 0")
    found = OFT(blocks, name == "oft_diag", limit or 0.0, rescale, convention)
    if rescale is not None and rescale.size != found.outputs:
        raise ValueError(f"rescale is {list(rescale.shape)}, and must have {found.outputs} numbers")
    return {"weight": found}


KIND = Kind(("oft_blocks", "oft_diag", "rescale"), ("alpha",), read)
