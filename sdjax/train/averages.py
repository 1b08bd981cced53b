"""Averages of the parameters over the steps, which are better than the newest ones, and what can be made of them later.

    e <- b e + (1 - b) p                                                                                     (1)
    Decay           b = min(d, (1 + n) / (10 + n)), n the steps done before this one: Tensorflow's
                    `ExponentialMovingAverage`, whose first steps are forgotten quickly
    PowerFunction   b = (1 - 1 / t)^(g + 1), t = n + 1                                                       (2)

(2) weighs the parameters of step u in the average at t by u^g: a bump whose width is a fixed part of the run, however
long that becomes; b = 0 at t = 1, so that what there was before the first step is forgotten exactly. Its name is the
relative width s, from which g follows (Karras et al. 2024, arXiv:2312.02696, equations 123 to 127):

    s^2 = (g + 1) / ((g + 2)^2 (g + 3))   <=>   g^3 + 7 g^2 + (16 - s^-2) g + 12 - s^-2 = 0                  (3)

Two such averages, kept now and then (`write_snapshot`), span those of other widths: `reconstruct` gives, after the run,
the average of any width at any step, as the combination of snapshots nearest to it in the mean square of the weights
over time (section 3 there):

    A x = B,  A_ij = <i, j>,  B_i = <i, wanted>,  x <- x / sum x                                             (4)
    <a, b> = (g_a + 1)(g_b + 1) q / ((g_a + g_b + 1) max(t_a, t_b))
    q = (t_a / t_b)^g_b where t_a < t_b, else (t_b / t_a)^g_a

Averages are float32 whatever the network computes in: in bfloat16 1 + 0.003 is 1, and an average stands still.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sdjax.core import tree
from sdjax.core.errors import CheckpointError
from sdjax.core.files import write
from sdjax.core.tree import Params

SNAPSHOTS = "snapshots"  # of a run's folder


class Average(Protocol):
    """A frozen dataclass."""

    @property
    def name(self) -> str:
        """Under which the state keeps it."""

    def weight(self, n: jax.Array) -> jax.Array:
        """1 - b of equation 1 at float32 n, the steps done before this one."""


@dataclass(frozen=True)
class Decay:
    """The exponential one."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"an average's decay must be from 0 to below 1, not {self.decay!r}")

    @property
    def name(self) -> str:
        return f"decay_{self.decay:g}"

    def weight(self, n: jax.Array) -> jax.Array:
        return 1 - jnp.minimum(self.decay, (1 + n) / (10 + n))


@dataclass(frozen=True)
class PowerFunction:
    """Equation 2. width: relative, s; 0.05 and 0.10 are the authors' two."""

    width: float

    def __post_init__(self) -> None:
        if not 0.001 <= self.width <= 0.28:  # as wide as u^0, the plain mean, is 0.2887
            raise ValueError(f"an average's relative width must be from 0.001 to 0.28, not {self.width!r}")

    @property
    def name(self) -> str:
        return f"width_{self.width:g}"

    @property
    def power(self) -> float:
        """g of equation 3."""
        inverse = self.width**-2
        return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())

    def weight(self, n: jax.Array) -> jax.Array:
        return -jnp.expm1((self.power + 1) * jnp.log1p(-1 / (n + 1)))


def moved(average: Params, params: Params, weight: jax.Array) -> Params:
    """Equation 1, with 1 - b given; written so that equal numbers stay what they are."""
    return jax.tree.map(lambda e, p: e + weight * (p.astype(e.dtype) - e), average, params)


def write_snapshot(folder: str | Path, average: PowerFunction, params: Params, step: int) -> Path:
    """Keeps an average as it is after `step` steps: `snapshots/<step>_<name>.safetensors` in the run's folder."""
    flat = {"/".join(path): np.asarray(leaf, np.float32) for path, leaf in tree.flatten(params).items()}
    told = {"step": str(step), "width": repr(average.width)}
    path = Path(folder) / SNAPSHOTS / f"{step:08d}_{average.name}.safetensors"
    return write(save({name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}, told), path, "the run")


def reconstruct(folder: str | Path, width: float, step: int | None = None) -> Params:
    """The average of this relative width after `step` steps (the last of which there is a snapshot), float32.

    Raises FileNotFoundError where the run kept no snapshot up to there; ValueError for a width out of range, or one
    that cannot be had from those kept; CheckpointError for a file that is damaged.
    """
    found = [(*_told(path), path) for path in sorted((Path(folder) / SNAPSHOTS).glob("*.safetensors"))]
    last = max((one[0] for one in found), default=0) if step is None else step
    found = [one for one in found if one[0] <= last]
    if not found:
        raise FileNotFoundError(f"{Path(folder) / SNAPSHOTS} holds no snapshot of the first {last} steps")
    weights = combination([(t, s) for t, s, _ in found], (last, width))
    total: dict[str, np.ndarray] = {}
    for weight, (_, _, path) in zip(weights, found, strict=True):
        for name, leaf in _read(path).items():
            total[name] = total.get(name, np.zeros(leaf.shape)) + weight * leaf.astype(np.float64)
    return tree.unflatten({tuple(name.split("/")): leaf.astype(np.float32) for name, leaf in total.items()})


def combination(kept: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> np.ndarray:
    """Equation 4: the weight of each snapshot (step, width), float64, of sum 1, for the wanted (step, width)."""
    return (solution := solved(kept, wanted)) / solution.sum()


def solved(kept: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> np.ndarray:
    """x of equation 4 before it is divided by its sum."""
    t = np.array([step for step, _ in kept], np.float64)
    g = np.array([PowerFunction(width).power for _, width in kept])
    a = _product(t[:, None], g[:, None], t[None], g[None])
    b = _product(t, g, np.float64(wanted[0]), np.float64(PowerFunction(wanted[1]).power))
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        raise ValueError("two snapshots are of the same step and width; take one away") from None


def _product(t_a: Any, g_a: Any, t_b: Any, g_b: Any) -> np.ndarray:
    ratio = np.where(t_a < t_b, (t_a / t_b) ** g_b, (t_b / t_a) ** g_a)
    return (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))


def _told(path: Path) -> tuple[int, float]:
    """(step, width) of a snapshot."""
    try:
        with safe_open(path, "numpy") as file:
            told: Mapping[str, str] = file.metadata() or {}
        return int(told["step"]), float(told["width"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no snapshot, or damaged ({json.dumps(str(error))}); move it away") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
