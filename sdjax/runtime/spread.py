"""The programs on many devices: each has its share of the pictures, or one half of their guidance."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.config import VaeConfig
from sdjax.core.devices import AXIS, Devices
from sdjax.core.keys import settled
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.table import Table
from sdjax.nn.conditioning import Conditions
from sdjax.nn.denoiser import Denoiser
from sdjax.runtime import programs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """A run's state on its devices: every leaf of `carry` is [devices, ...], for b pictures and those filled up."""

    carry: scan.Carry
    b: int = field(metadata={"static": True})


@dataclass(frozen=True)
class Spread:
    """The functions of `programs`, same names and arguments, on several devices.

    What `shard_inputs` gives, and the `Split` that `begin` gives, stay on them and go to `run_rows` and `inspect_row`
    as they are.

    Attributes:
      devices: where. halves: each picture's two halves on two of them, which stand next to each other.
    """

    devices: Devices
    halves: bool = False

    # Texts, single pictures and a handful of numbers gain nothing from many devices.
    encode_text = staticmethod(programs.encode_text)
    encode_image = staticmethod(programs.encode_image)
    estimate_depth = staticmethod(programs.estimate_depth)
    noise = staticmethod(programs.noise)

    def shard_inputs(self, told: Any, axis: int, parts: int | None = None) -> Any:
        """See `programs.shard_inputs`: from the host, each to its device. Raises ValueError for other than halves."""
        if self.halves and parts not in (None, 2):
            raise ValueError(
                f"halves=True shares out a picture's guided and unguided half, and this run has {parts} part(s): give "
                "guidance_scale above 1 and one prompt without AND, regions or a pull of its own for the picture"
            )

        def one(leaf: Any) -> jax.Array:
            b = leaf.shape[axis] // (parts or 1)
            return self._put(_taken(leaf, self._index(b, parts), axis))

        return jax.tree.map(one, told)

    def begin(self, x: Any, known: KnownRegion, start_mix: np.ndarray, table: Table) -> Split:
        """See `programs.begin`."""
        start = _mapped(self.devices, programs.begin, (0,) * 4)
        return Split(start(self.shard_inputs(x, 0), known, self.shard_inputs(start_mix, 1), self.rows(table)), len(x))

    def draw(self, split: Split, table: Table, keys: jax.Array, draws: np.ndarray | None) -> Split:
        """See `programs.draw`."""
        add = _mapped(self.devices, programs.draw, (0,) * 4, donate=0)
        return replace(
            split, carry=add(split.carry, self.rows(table), self.shard_inputs(keys, 0), self.shard_inputs(draws, 1))
        )

    def inspect_row(self, split: Split, table: Table, index: Any, known: KnownRegion) -> tuple[np.ndarray, np.ndarray]:
        """See `programs.inspect_row`."""
        see = _mapped(self.devices, programs.inspect_row, (0,) * 4)
        x, denoised = see(split.carry, self.rows(table), self._everywhere(index), known)
        return self._joined(x, split.b), self._joined(denoised, split.b)

    def result(self, split: Split) -> np.ndarray:
        """See `programs.result`."""
        return self._joined(scan.result(split.carry), split.b)

    def run_rows(
        self,
        denoiser: Denoiser,
        split: Split,
        rows: Table,
        params: Any,
        conditions: Conditions,
        guidance: Guidance | None,
        known: KnownRegion,
        regions: jax.Array | None = None,
    ) -> Split:
        """See `programs.run_rows`."""
        run = self.loop(denoiser)
        carry = run(split.carry, self.rows(rows), params, conditions, guidance, known, regions)
        return replace(split, carry=carry)

    def loop(self, denoiser: Denoiser) -> Any:
        """The program of `run_rows`, of (carry, rows, params, conditions, guidance, held, regions) on the devices."""
        axes, gather = (0, 0, None, 0, 0, 0, 0), _from_both if self.halves else None
        return _mapped(self.devices, programs.run_rows, axes, denoiser, donate=0, gather=gather)

    def rows(self, table: Table) -> Table:
        """A table to every device, or each picture's plan to the device that has it."""
        many = np.ndim(table.timestep) == 2
        return jax.tree.map(
            lambda a: self.shard_inputs(a, -1) if many and np.ndim(a) > 1 else self._everywhere(a), table
        )

    def precompute_kv(self, denoiser: Denoiser, params: Any, conditions: Conditions) -> Conditions:
        """See `programs.precompute_kv`; of conditions that are placed."""
        return _mapped(self.devices, programs.precompute_kv, (None, 0), denoiser)(params, conditions)

    def predict(self, denoiser: Denoiser, params: Any, x: Any, t: Any, conditions: Conditions) -> np.ndarray:
        """See `programs.predict`."""
        answer = _mapped(self.devices, programs.predict, (None, 0, 0, 0), denoiser)
        return self._joined(answer(params, *self.shard_inputs((x, t, conditions), 0)), len(x))

    def decode(self, config: VaeConfig, dtype: Any, params: Any, latents: Any) -> np.ndarray:
        """See `programs.decode`."""
        make = _mapped(self.devices, programs.decode, (None, 0), config, dtype)
        return self._joined(make(params, self.shard_inputs(latents, 0)), len(latents))

    def encode(self, config: VaeConfig, dtype: Any, params: Any, pixels: Any, noise: Any) -> np.ndarray:
        """See `programs.encode`."""
        make = _mapped(self.devices, programs.encode, (None, 0, 0), config, dtype)
        return self._joined(make(params, *self.shard_inputs((pixels, noise), 0)), len(pixels))

    # ------------------------------------------------------------------ to the devices and back

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
        return jax.device_put(array, NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS)))

    def _joined(self, array: jax.Array, b: int) -> np.ndarray:
        """[devices, n, ...] -> [b, ...], without what was filled up."""
        whole = np.asarray(array)[:: 2 if self.halves else 1]
        return whole.reshape(-1, *whole.shape[2:])[:b]


def _taken(array: Any, index: np.ndarray, axis: int) -> Any:
    """[.., b, ..] -> [devices, .., n, ..]."""
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array[index]
    return np.moveaxis(np.take(np.asarray(array), index, axis % np.ndim(array)), axis % np.ndim(array), 0)


@cache
def _mapped(
    devices: Devices, function: Callable[..., Any], axes: tuple[int | None, ...], *static: Any, **named: Any
) -> "_Mapped":
    """`function(*static, ..)` on each device with its entry of the arguments, those of axis None the same on all."""
    donate = named.pop("donate", ())
    function = partial(function, *static, **named)
    return _Mapped(jax.pmap(function, AXIS, in_axes=axes, devices=devices, donate_argnums=donate))


@dataclass(frozen=True)
class _Mapped:
    """A function on many devices, under the same settings of JAX as a `Program` runs under."""

    pmapped: Any

    def __call__(self, *args: Any) -> Any:
        with settled():
            return self.pmapped(*args)

    def lower(self, *args: Any) -> Any:
        """`jax.pmap`'s."""
        with settled():
            return self.pmapped.lower(*args)


def _from_both(own: jax.Array) -> jax.Array:
    """One half's answer `b h w c` on each of two devices -> both, `(2 b) h w c`, on each."""
    pairs = np.arange(lax.axis_size(AXIS)).reshape(-1, 2).tolist()
    both = lax.all_gather(own, AXIS, axis_index_groups=pairs)
    return both.reshape(-1, *own.shape[1:])
