"""Changes of low rank from larger ones: a LoRA out of two checkpoints, or out of a LoRA of higher rank.

By Eckart and Young, of all matrices of rank r the nearest to D (`o i`, or `o ihw`) is that of its r largest singular
values, and of the squared norm it keeps the share

    D = U S V^T     D_r = (U_r S_r^1/2) (S_r^1/2 V_r^T)     kept = sum_(k <= r) S_k^2 / sum S_k^2           (1)

Both factors get the root of S, so that neither leaves a 16-bit range. Of a product of factors S is found from two thin
QR decompositions; of a whole D from the smaller of D D^T and D^T D in float64, whose eigenvalues are S^2: several times
faster than an SVD, and exact down to 1e-8 of the largest S.

kohya's and ComfyUI's extractions cut the largest 1 % of all entries afterwards; that alone is an error of 1e-2 where
(1) is exact, so that here `clamp` is None.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.adapter import Adapter, Module
from sdjax.adapters.algebra import additive, build, low_rank, parts_of, whole
from sdjax.core import tree
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.core.tree import Path
from sdjax.weights import names

SMALLEST = 1e-7  # of the largest singular value: less is rounding
Count = Callable[[np.ndarray], int]  # singular values, the largest first -> how many are kept


class Reduced(NamedTuple):
    """An adapter of lower rank, and kept: its share of the squared norm of all that it stands for, equation 1."""

    adapter: Adapter
    kept: float


def extract(
    params_a: Mapping[str, Any],
    params_b: Mapping[str, Any],
    rank: int,
    *,
    conv_rank: int | None = None,
    biases: bool = False,
    clamp: float | None = None,
    name: str = "extracted",
    family: str = "unknown",
    dtype: DTypeLike = np.float32,
) -> Reduced:
    """A LoRA that makes checkpoint b of checkpoint a, as nearly as its rank allows: equation 1 for every kernel.

    params_a, params_b: trees of the same networks, {"unet": .., "text_encoder": ..}; text encoders that both have take
    part. rank: at most; conv_rank: that of 3x3 convolutions, None for the same. biases: whether biases and norms take
    part too, whole; embeddings of tokens never do. clamp: the quantile at which each module's factors are cut, as
    kohya's tool does by 0.99. name, family: of the adapter. dtype: of its tensors.

    Raises ValueError where the two are not of one shape, do not differ, or are not finite.
    """
    usual = _rule(rank, None, None)
    of_convolutions = usual if conv_rank is None else _rule(conv_rank, None, None, "conv_rank")
    if clamp is not None and not (is_number(clamp) and 0 < clamp <= 1):
        raise ValueError(f"clamp is a quantile above 0 and up to 1, not {short(clamp)}")
    modules: dict[Module, dict[str, np.ndarray]] = {}
    total = Total()
    for component, part in parts_of(params_a).items():
        for path, change in _changes(component, params_a, params_b):
            tensors = modules.setdefault(Module(part, "_".join(path[:-1]).replace(".", "_")), {})
            if path[-1] == "kernel":
                wide = change.ndim == 4 and change.shape[2:] != (1, 1)
                up, down = total.truncated(change.reshape(len(change), -1), of_convolutions if wide else usual)
                up, down = _clamped(up, down, clamp)
                tensors |= low_rank(up, down.reshape(len(down), *change.shape[1:]))
            elif biases and path[-1] in ("bias", "scale"):
                norm = "kernel" not in _module(params_a[component], path)
                tensors |= whole("bias" if path[-1] == "bias" else "weight", change, norm)
                total.add(change, change)
    modules = {module: tensors for module, tensors in modules.items() if tensors}
    if not modules:
        raise ValueError("extract: the two checkpoints do not differ in any weight that a LoRA changes")
    return _reduced(name, family, modules, total, dtype, {"ss_network_dim": str(rank)})


def resize(
    adapter: Adapter,
    rank: int | None = None,
    *,
    sv_fro: float | None = None,
    sv_ratio: float | None = None,
    name: str | None = None,
    dtype: DTypeLike = np.float32,
) -> Reduced:
    """An adapter at a lower rank, by equation 1; LoHa, LoKr and whole differences become LoRA.

    rank: at most so much. sv_fro: in each module as few as keep this share of the Frobenius norm, 0 to 1. sv_ratio: in
    each module those of at least the largest singular value by this number, above 1. One of the three at least; where
    two are given, the smaller rank. What each module had for a scale is in its factors. name: None for the old one with
    the rank behind it.

    Raises ValueError for kinds that are not additive (DoRA, OFT ..) and for numbers out of range.
    """
    count = _rule(rank, sv_fro, sv_ratio)
    modules: dict[Module, dict[str, np.ndarray]] = {}
    total = Total()
    for module, deltas in adapter.modules.items():
        tensors = modules.setdefault(module, {})
        for target, delta in deltas.items():
            found = additive(delta, f"{adapter.name}: {module.part}_{module.name}")
            if len(found.shape) < 2:
                change = found.difference(np.zeros(found.shape))
                tensors |= whole(target, change, delta.kind == "norm")
                total.add(change, change)
                continue
            factors = found.factors()
            if factors is None:
                change = found.difference(np.zeros(found.shape))
                up, down = total.truncated(change.reshape(len(change), -1), count)
            else:
                up, down = total.truncated_product(factors[1], factors[0].reshape(len(factors[0]), -1), count)
            if len(down):
                tensors |= low_rank(up, down.reshape(len(down), *found.shape[1:]))
    modules = {module: tensors for module, tensors in modules.items() if tensors}
    if not modules:
        raise ValueError(f"resize: {adapter.name} changes nothing")
    said = f"{adapter.name}-{rank}" if rank is not None else f"{adapter.name}-resized"
    return _reduced(name or said, adapter.family, modules, total, dtype, {})


class Total:
    """The squared norms of what is there and of what is kept, summed over all modules."""

    def __init__(self) -> None:
        self.whole = self.kept = 0.0

    def add(self, change: np.ndarray, kept: np.ndarray) -> None:
        """One module's; kept: singular values, or what else has their norm."""
        self.whole += float(np.sum(np.square(change, dtype=np.float64)))
        self.kept += float(np.sum(np.square(kept, dtype=np.float64)))

    def truncated(self, change: np.ndarray, count: Count) -> tuple[np.ndarray, np.ndarray]:
        """Equation 1 of a matrix: (up, down)."""
        wide = np.asarray(change, np.float64)
        tall = wide.shape[0] > wide.shape[1]
        squares, vectors = np.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
        s = np.sqrt(np.maximum(squares[::-1], 0))
        r = _real(s, count)
        self.add(wide, s[:r])
        vectors, root = vectors[:, ::-1][:, :r], np.sqrt(s[:r])
        if tall:
            return wide @ vectors / root, (vectors * root).T
        return vectors * root, vectors.T @ wide / root[:, None]

    def truncated_product(self, up: np.ndarray, down: np.ndarray, count: Count) -> tuple[np.ndarray, np.ndarray]:
        """Equation 1 of a product: (up, down)."""
        left, a = np.linalg.qr(np.asarray(up, np.float64))
        right, b = np.linalg.qr(np.asarray(down, np.float64).T)
        u, s, vt = np.linalg.svd(a @ b.T, full_matrices=False)
        r = _real(s, count)
        self.add(s, s[:r])
        root = np.sqrt(s[:r])
        return left @ (u[:, :r] * root), (root[:, None] * vt[:r]) @ right.T


def _real(s: np.ndarray, count: Count) -> int:
    """How many singular values are kept: as many as asked for, and none that is rounding."""
    real = int(np.sum(s > SMALLEST * s[0]))
    return min(count(s), real) if real else 0


def _rule(rank: int | None, sv_fro: float | None, sv_ratio: float | None, name: str = "rank") -> Count:
    """How many singular values are kept; name: of the rank. Raises ValueError for what is out of range."""
    if rank is None and sv_fro is None and sv_ratio is None:
        raise ValueError("resize: give a rank, sv_fro or sv_ratio")
    most = None if rank is None else _rank(rank, name)
    if sv_fro is not None and not (is_number(sv_fro) and 0 < sv_fro <= 1):
        raise ValueError(f"sv_fro is a share of the norm, above 0 and up to 1, not {short(sv_fro)}")
    if sv_ratio is not None and not (is_number(sv_ratio) and 1 <= sv_ratio < math.inf):
        raise ValueError(f"sv_ratio is how many times the largest singular value may exceed one, not {short(sv_ratio)}")

    def count(s: np.ndarray) -> int:
        found = len(s) if most is None else min(most, len(s))
        if sv_fro is not None:
            shares = np.sqrt(np.cumsum(s**2) / max(float(np.sum(s**2)), np.finfo(float).tiny))
            found = min(found, int(np.searchsorted(shares, sv_fro * (1 - 1e-12))) + 1)
        if sv_ratio is not None:
            found = min(found, int(np.sum(s * sv_ratio >= s[0])))
        return max(found, 1)

    return count


def _rank(value: Any, name: str) -> int:
    if not is_number(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {short(value)}")
    return int(value)


def _changes(
    component: str, params_a: Mapping[str, Any], params_b: Mapping[str, Any]
) -> Iterator[tuple[Path, np.ndarray]]:
    """What differs in a component, leaf by leaf, in torch's order of axes. Raises ValueError as `extract` does."""
    if component not in params_b:
        if component == "unet":
            raise ValueError("extract: the second checkpoint has no unet")
        return
    ours, theirs = tree.flatten(params_a[component]), tree.flatten(params_b[component])
    if other := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"extract: {component} is of different parts: only one has {'.'.join(other[0])}")
    shapes = {path: (list(leaf.shape), list(theirs[path].shape)) for path, leaf in ours.items()}
    for path, (one, other_one) in shapes.items():
        if one != other_one:
            raise ValueError(f"extract: {component}: {'.'.join(path)} is {one} in one and {other_one} in the other")
    for path, leaf in ours.items():
        change = np.asarray(theirs[path]).astype(np.float32) - np.asarray(leaf).astype(np.float32)
        if not np.isfinite(change).all():
            raise ValueError(f"extract: {component}: {'.'.join(path)} is not finite in one of the two")
        if change.any():
            yield path, names.to_file(path, change)


def _module(params: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    level = params
    for key in path[:-1]:
        level = level[key]
    return level


def _clamped(up: np.ndarray, down: np.ndarray, quantile: float | None) -> tuple[np.ndarray, np.ndarray]:
    if quantile is None:
        return up, down
    limit = np.quantile(np.concatenate([up.reshape(-1), down.reshape(-1)]), quantile)
    return np.clip(up, -limit, limit), np.clip(down, -limit, limit)


def _reduced(
    name: str,
    family: str,
    modules: Mapping[Module, Mapping[str, np.ndarray]],
    total: Total,
    dtype: DTypeLike,
    said: Any,
) -> Reduced:
    kept = total.kept / total.whole if total.whole else 1.0
    return Reduced(build(name, family, modules, {"sdjax_kept": f"{kept:.6f}", **said}, dtype), kept)
