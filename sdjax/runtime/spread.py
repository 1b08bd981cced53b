"""Programs on many devices: each has its share of the pictures, or one half of their guidance.

A batch of b pictures is filled up to a multiple of the devices with the last one, cut into `[devices, b / devices]`
along the axes that the program declares, and what is filled up is cut off at the end. What a program keeps (KEPT) stays
where it was computed, and goes to the next one as it is.

`jax.pmap` is asked for by name. It is in maintenance: `jax.jit` over `jax.shard_map` with `PartitionSpec(AXIS)` for the
arguments that are cut here and `PartitionSpec()` for the parameters would take its place, in `_mapped`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax

from sdjax.core.devices import AXIS, Devices, copied, split
from sdjax.core.jit import KEPT, PARAMS, Batch, Program
from sdjax.core.keys import settled
from sdjax.diffusion.guidance import Guidance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """What a program left on the devices: leaves of `tree` are [devices, ...], for b pictures and those filled up."""

    tree: Any
    b: int = field(metadata={"static": True})


@dataclass(frozen=True)
class Spread:
    """An executor on several devices.

    Attributes:
      devices: where. halves: each picture's two halves on two of them, which stand next to each other.
    """

    devices: Devices
    halves: bool = False

    def run(self, program: Program, *args: Any) -> Any:
        """See `Executor.run`. What many devices gain nothing by (texts, single pictures) runs on the first alone."""
        if program.batch is None:
            return program(*args)
        static, data = args[: program.static], args[program.static :]
        specs = program.batch[: len(data)]
        counts = [_pictures(spec, arg) for spec, arg in zip(specs, data, strict=True)]
        b = next((count for count in counts if count is not None), None)
        placed = [self._placed(spec, arg) for spec, arg in zip(specs, data, strict=True)]
        made = self.mapped(program, static, len(data))(*placed)
        if program.out == KEPT:  # where no argument tells how many pictures it is of, nobody will cut it
            return made if b is None else Kept(made, b)
        assert b is not None
        return jax.tree.map(lambda leaf: self._joined(leaf, b), made)

    def lower(self, program: Program, *args: Any) -> Any:
        """The program that `run` would run, lowered and not compiled."""
        static, data = args[: program.static], args[program.static :]
        placed = [self._placed(spec, arg) for spec, arg in zip(program.batch or (), data, strict=False)]
        return self.mapped(program, static, len(data)).lower(*placed)

    def mapped(self, program: Program, static: tuple[Any, ...], count: int) -> "_Mapped":
        """The program on the devices, of `count` arguments beside the static ones."""
        if self.halves and program.gathers is not None:
            static = (*static[: program.gathers], _from_both, *static[program.gathers + 1 :])
        axes = tuple(None if spec == PARAMS else 0 for spec in (program.batch or ())[:count])
        return _mapped(self.devices, program, axes, static)

    def shard_inputs(self, tree: Any, axis: int, parts: int | None = None) -> Any:
        """See `Executor.shard_inputs`: from the host, each to its device. Raises ValueError for other than halves."""
        if self.halves and parts not in (None, 2):
            raise ValueError(
                f"halves=True shares out a picture's guided and unguided half, and this run has {parts} part(s): give "
                "guidance_scale above 1 and one prompt without AND, regions or a pull of its own for the picture"
            )
        if self.halves and isinstance(tree, Guidance):
            tree = tree.complete()  # the other half has a device of its own, and would only wait

        def one(leaf: Any) -> jax.Array:
            b = leaf.shape[axis] // (parts or 1)
            return self._put(_taken(leaf, self._index(b, parts), axis))

        return jax.tree.map(one, tree)

    def place(self, params: Any) -> Any:
        """See `Executor.place`: a copy on every device."""
        return jax.tree.map(lambda leaf: copied(leaf, self.devices), params)

    # ------------------------------------------------------------------ to the devices and back

    def _placed(self, spec: Batch, arg: Any) -> Any:
        """An argument as its declared axis wants it: laid out now, or already where it is to be."""
        if spec == PARAMS:
            return arg
        if spec == KEPT:
            return jax.tree.map(lambda one: one.tree if _is_kept(one) else one, arg, is_leaf=_is_kept)
        if not callable(spec):
            assert spec is None or isinstance(spec, int)
            return self._everywhere(arg) if spec is None else self.shard_inputs(arg, spec)
        leaves, structure = jax.tree.flatten(arg)
        laid_out = [self._placed(own, leaf) for own, leaf in zip(spec(arg), leaves, strict=True)]
        return jax.tree.unflatten(structure, laid_out)

    @property
    def _groups(self) -> int:
        """Devices, or pairs of them, that have pictures of their own."""
        return len(self.devices) // (2 if self.halves else 1)

    def _index(self, b: int, parts: int | None) -> np.ndarray:
        """Which entries of an axis of b pictures, or of `(parts b)`, each device has: [devices, n]."""
        each = -(-b // self._groups)
        own = np.minimum(np.arange(self._groups * each), b - 1).reshape(self._groups, each)
        if parts is None:
            return own.repeat(2, axis=0) if self.halves else own
        by_part = own[:, None] + b * np.arange(parts)[:, None]
        return by_part.reshape(len(self.devices), -1)

    def _everywhere(self, array: Any) -> jax.Array:
        array = np.asarray(array)
        return self._put(np.broadcast_to(array, (len(self.devices), *array.shape)))

    def _put(self, array: Any) -> jax.Array:
        return jax.device_put(array, split(self.devices))

    def _joined(self, array: jax.Array, b: int) -> np.ndarray:
        """[devices, n, ...] -> [b, ...], without what was filled up."""
        whole = np.asarray(array)[:: 2 if self.halves else 1]
        return whole.reshape(-1, *whole.shape[2:])[:b]


def _is_kept(value: Any) -> bool:
    return isinstance(value, Kept)


def _pictures(spec: Batch, arg: Any) -> int | None:
    """How many pictures an argument is of, where it tells."""
    if spec == KEPT:
        return arg.b if _is_kept(arg) else None
    leaves = jax.tree.leaves(arg) if isinstance(spec, int) else []
    return leaves[0].shape[spec] if leaves else None


def _taken(array: Any, index: np.ndarray, axis: int) -> Any:
    """[.., b, ..] -> [devices, .., n, ..]."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array[index]
    return np.moveaxis(np.take(np.asarray(array), index, axis % np.ndim(array)), axis % np.ndim(array), 0)


@cache
def _mapped(devices: Devices, program: Program, axes: tuple[int | None, ...], static: tuple[Any, ...]) -> "_Mapped":
    """The program on each device with its entry of the arguments, those of axis None the same on all."""
    function = partial(program.function, *static)
    return _Mapped(jax.pmap(function, AXIS, in_axes=axes, devices=devices, donate_argnums=program.donate))


@dataclass(frozen=True)
class _Mapped:
    """A function on many devices, under the same settings of JAX as a `Program` runs under."""

    pmapped: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        with settled():
            return self.pmapped(*args)

    def lower(self, *args: Any) -> Any:
        """`jax.pmap`'s."""
        with settled():
            return self.pmapped.lower(*args)  # type: ignore[attr-defined]


def _from_both(own: jax.Array) -> jax.Array:
    """One half's answer `b h w c` on each of two devices -> both, `(2 b) h w c`, on each."""
    pairs = np.arange(lax.axis_size(AXIS)).reshape(-1, 2).tolist()
    both = lax.all_gather(own, AXIS, axis_index_groups=pairs)
    return both.reshape(-1, *own.shape[1:])
