"""Adapters merged into parameters: another tree, computed in float32 from the untouched one, each number cast once.

With W a leaf and each adapter's change of it in the order given, every one seeing what those before it left,

    W_0 = float32(W)     W_k = apply_k(W_(k-1), m_k)     W' = cast(W_n)                                     (1)

Where all of them are of low rank, their factors are laid side by side and multiplied at once,

    W' = cast(float32(W) + [m_1 up_1 | m_2 up_2 ..] [down_1; down_2; ..])                                   (2)

which is (1) but for the order in which is added. Nothing is ever taken out again by subtraction: what is to come off is
left out of the next merge. Beside the result there is one tensor more at a time in (2), three in (1).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.adapters.adapter import Bound
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.kinds.fit import factors_for
from sdjax.core import tree
from sdjax.core.errors import CheckpointError, unknown
from sdjax.core.jit import program
from sdjax.core.numbers import is_number
from sdjax.core.short import short
from sdjax.core.tree import Path, Shape
from sdjax.weights import names, tensors


class Binds(Protocol):
    """What can be merged: an Adapter, or what names the parameters that it changes as one does."""

    @property
    def name(self) -> str: ...

    def bind(self, params: Mapping[str, Any]) -> Bound: ...


Rule = Callable[[str, str], float]  # component, the module's path in it -> scale
Scale = float | Mapping[str, float] | Rule


class Step(NamedTuple):
    """One adapter's change of one leaf."""

    adapter: str
    delta: Delta
    scale: float


def merge(
    params: Mapping[str, Any], adapters: Iterable[tuple[Binds, Scale]], dtype: DTypeLike | None = None
) -> dict[str, Any]:
    """The parameters with adapters merged into them, by equation 1: a new tree.

    params: {"unet": .., "text_encoder": ..}, of NumPy's arrays or of JAX's, which stay where they are. adapters: each
    with its scale: a finite number; one for each component that it changes, by name (0 leaves a component as it is);
    or a rule (component, path of the module) -> number, as `blocks.BlockWeights` is. dtype: of the leaves that are
    changed; None keeps each one's own.

    Leaves that nothing changes, or only at scale 0, are the very same objects. A bias that a layer lacks is made.

    Raises ValueError for a scale that is no finite number, a component that a scale does not name, an adapter for
    another model, and a leaf that is no longer finite.
    """
    places = {name: {".".join(path[:-1]): path[:-1] for path in tree.flatten(params[name])} for name in params}
    chains: dict[Path, list[Step]] = {}
    for adapter, scale in adapters:
        bound = adapter.bind(params)
        rule = scale_rule(scale, adapter.name, bound)
        for component, modules in bound.items():
            for module, deltas in modules.items():
                factor = rule(component, module)
                for leaf, delta in deltas.items() if factor != 0 else ():
                    path = (component, *places[component][module], leaf)
                    chains.setdefault(path, []).append(Step(adapter.name, delta, factor))
    flat = tree.flatten(params)
    room = _Room()
    changed = {path: _merged(path, _leaf(flat, path), chain, dtype, room) for path, chain in chains.items()}
    return tree.unflatten(flat | changed)


def scale_rule(scale: Scale, name: str, bound: Bound) -> Rule:
    """A scale as a rule, whose numbers are checked; name: of the adapter. Raises ValueError as `merge` does."""
    if isinstance(scale, Mapping):
        known = ("unet", "text_encoder", "text_encoder_2", *bound)
        for component in scale:
            if component not in known:
                raise ValueError(
                    unknown(
                        f"adapter {name}: {short(component)} is no part of a model", component, dict.fromkeys(known)
                    )
                )
        if missing := [component for component in bound if component not in scale]:
            raise ValueError(
                f"adapter {name}: its scale says nothing of {', '.join(missing)}, which it changes too: "
                "name every part, 0 for one that is to stay as it is"
            )
        numbers = {component: _finite(one, f"adapter {name}: {component}") for component, one in scale.items()}
        return lambda component, path: numbers[component]
    if callable(scale):
        return lambda component, path: _finite(scale(component, path), f"adapter {name}: {component}: {path}")
    number = _finite(scale, f"adapter {name}")
    return lambda component, path: number


def _finite(value: Any, what: str) -> float:
    if not is_number(value, int | float | np.integer | np.floating) or not math.isfinite(value):
        raise ValueError(f"{what}: the scale must be a finite number, not {short(value)}")
    return float(value)


def _leaf(flat: Mapping[Path, Any], path: Path) -> Any:
    """A leaf of the parameters; zeros for the bias of a layer that has none."""
    if path in flat or path[-1] != "bias":
        return flat[path]
    beside = flat.get((*path[:-1], "kernel"))
    beside = flat[(*path[:-1], "scale")] if beside is None else beside
    return np.zeros(beside.shape[-1], beside.dtype)


class _Room:
    """Memory for one tensor of float32 at a time, as large as the largest so far: new pages cost as much as sums."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.float32)

    def array(self, shape: Shape) -> np.ndarray:
        """An array of this shape, which the next call overwrites."""
        count = math.prod(shape)
        if self._room.size < count:
            self._room = tensors.aligned((count,), np.dtype(np.float32))
        return self._room[:count].reshape(shape)


def _merged(path: Path, leaf: Any, chain: Sequence[Step], dtype: DTypeLike | None, room: _Room) -> Any:
    """One leaf with all its changes, in its own kind of array, where it was."""
    target = np.dtype(leaf.dtype if dtype is None else dtype)
    what = f"{path[0]}: {'.'.join(path[1:])}"
    shape = names.file_shapes(path, tuple(leaf.shape))[0]
    low_rank = [found for step in chain if (found := _factors(step, shape, what)) is not None]
    if len(low_rank) < len(chain) or leaf.dtype == np.float64:
        wide = _in_order(path, leaf, chain, shape, what)
        result = wide.astype(target) if wide.dtype == np.float64 else _cast(wide, target, room)
    else:
        result = _added_to(path, leaf, low_rank, shape, target, room)
    _check(result, f"{what}: merged at these scales ({', '.join(step.adapter for step in chain)})", target)
    return jax.device_put(result, leaf.sharding) if isinstance(leaf, jax.Array) else np.asarray(result)


def _factors(step: Step, shape: Shape, what: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A step's factors, with its scale in `up`; None where it has none."""
    try:
        found = factors_for(step.delta, shape)
    except ValueError as error:
        raise ValueError(f"adapter {step.adapter}: {what}: {error}") from None
    return found and (found[0], found[1] * np.float32(step.scale))


def _in_order(path: Path, leaf: Any, chain: Sequence[Step], shape: Shape, what: str) -> np.ndarray:
    """Equation 1 without its cast, in our order of axes."""
    host = np.asarray(leaf)
    wide = np.dtype(np.float64 if host.dtype == np.float64 else np.float32)
    weight = np.empty(shape, wide)
    names.copy(names.from_file(path, weight), host)
    for step in chain:
        weight = step.delta.apply(weight, step.scale)
    return names.from_file(path, weight)


def _cast(found: np.ndarray, dtype: np.dtype, room: _Room) -> jax.Array:
    target = room.array(found.shape)
    names.copy(target, found)
    return jax.block_until_ready(cast(dtype, target))


def _added_to(
    path: Path, leaf: Any, factors: Sequence[tuple[np.ndarray, np.ndarray]], shape: Shape, dtype: np.dtype, room: _Room
) -> Any:
    """Equation 2, along the axes as they lie in memory: ours, or the file's where the leaf is a view of a file."""
    down = np.concatenate([down for down, _ in factors])
    up = np.concatenate([up for _, up in factors], axis=1)
    host = isinstance(leaf, np.ndarray)
    if path[-1] != "kernel" or (host and not leaf.flags.c_contiguous):
        change = room.array(shape)
        np.matmul(up, down.reshape(len(down), -1), out=change.reshape(len(up), -1))
        found = add(dtype, names.to_file(path, leaf) if host else leaf, change)
        return names.from_file(path, np.asarray(found)) if host else jax.block_until_ready(found)
    change = room.array(leaf.shape)
    np.matmul(names.from_file(path, down).reshape(-1, len(down)), up.T, out=change.reshape(-1, len(up)))
    return jax.block_until_ready(add(dtype, leaf, change))


@program(static=1)
def add(dtype: np.dtype, weight: jax.Array, change: jax.Array) -> jax.Array:
    """The last step of equation 2: in one pass, where NumPy takes three and casts 16-bit floats one by one."""
    return (weight.astype(jnp.float32) + change).astype(dtype)


@program(static=1)
def cast(dtype: np.dtype, weight: jax.Array) -> jax.Array:
    """The last step of equation 1."""
    return weight.astype(dtype)


def _check(found: Any, what: str, dtype: np.dtype) -> None:
    """Raises ValueError for what is no longer finite: it would paint a black picture half an hour later."""
    if isinstance(found, jax.Array) and not found.is_fully_addressable:
        return
    try:
        tensors.check_finite(np.asarray(found).ravel(order="K"), what)
    except CheckpointError:
        raise ValueError(f"{what} it leaves the range of {dtype}: take smaller scales") from None
