"""Many devices: a batch spread over them, a picture's two halves, or parameters too large for one.

    sd8 = parallel.spread(sd)                            each device its share of the pictures
    sd2 = parallel.spread(sd, devices=2, halves=True)    each picture's guided half on one, its unguided on another
    big = parallel.shard(sd, devices=4)                  every device its share of the channels

All three are a `StableDiffusion` like any other, but that their parameters have the dtype they are used in (see
`_used`): save the one that they were made from. `spread` puts a copy of the U-Net and the VAE on every device, once.
A batch of b pictures is filled up to a multiple of the devices with the last one, cut into `[devices, b / devices]`,
and what is filled up is cut off at the end. Data stays where it is computed with from the run's first step to its last:
no step moves a number between host and devices, and none between devices but for `halves`, where two of them exchange
their answers, one latent `b h w c` a step. Text encoders and what estimates depth run on the first device alone.

`shard` cuts every parameter along its output channels and leaves it to XLA what has to be exchanged for that, at every
layer; it pays only where the parameters do not fit otherwise.

`jax.pmap` is asked for by name. It is in maintenance: `jax.jit` over `jax.shard_map` with `PartitionSpec(AXIS)` for the
arguments that are cut here and `PartitionSpec()` for the parameters would take its place, in `_mapped`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax import programs
from sdjax.config import UNetConfig, VaeConfig
from sdjax.diffusion import scan
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.held import Held
from sdjax.diffusion.table import Table
from sdjax.keys import settled
from sdjax.nn.attention import Chunks
from sdjax.nn.unet import Conditions
from sdjax.pipeline import StableDiffusion

AXIS = "devices"
COPIED = ("unet", "vae")  # what runs on every device; the others run once a text, or once a picture
Devices = tuple[jax.Device, ...]


def spread(
    sd: StableDiffusion, devices: int | Sequence[jax.Device] | None = None, *, halves: bool = False
) -> StableDiffusion:
    """`sd` on several of this process's devices: the first so many, these, or all.

    halves: two devices for each picture, one for either half of its guidance.

    Raises ValueError where there are fewer devices, an odd number for halves, or the parameters do not fit on one.
    """
    chosen = local(devices)
    if halves and len(chosen) % 2:
        raise ValueError(f"halves=True takes devices in pairs, and there are {len(chosen)}; name an even number")
    check_memory(sd, chosen, cut=False)
    used = _used(sd)
    copied = {name: jax.tree.map(partial(_copied, everywhere(chosen)), used[name]) for name in COPIED}
    return replace(sd, params={**sd.params, **copied}, programs=Spread(chosen, halves))


def shard(sd: StableDiffusion, devices: int | Sequence[jax.Device] | None = None) -> StableDiffusion:
    """`sd` with its parameters cut over devices, along the output channels where these divide by their number.

    One that is too large for a device is loaded `with jax.default_device(jax.devices("cpu")[0])` and cut from there.

    Raises ValueError where there are fewer devices, or the parameters do not fit even so.
    """
    chosen = local(devices)
    check_memory(sd, chosen, cut=True)
    mesh = Mesh(np.array(chosen), (AXIS,))

    def cut(array: Any) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, _channels(array.shape, len(chosen))))

    return replace(sd, params=jax.tree.map(cut, _used(sd)))


def _used(sd: StableDiffusion) -> dict[str, Any]:
    """The parameters in the dtype they are used in; as they were loaded where they may be used in float32 as well.

    Those are of what runs once more where float16 was not enough (see `finite`): a parameter that was rounded to
    float16, or beyond its range, would not give the numbers of one device.
    """
    again = set(sd.params) - {"unet"} if sd.dtype == jnp.float16 else set()
    return {name: sd.params[name] if name in again else tree for name, tree in sd.ready.items()}


def local(devices: int | Sequence[jax.Device] | None) -> Devices:
    """This process's devices: the first so many, these, or all. Raises ValueError where there are fewer."""
    if devices is not None and not isinstance(devices, int):
        return tuple(devices)
    here = jax.local_devices()
    if devices is None:
        return tuple(here)
    if not 1 <= devices <= len(here):
        kind = here[0].platform
        remedy = f"; XLA_FLAGS=--xla_force_host_platform_device_count={devices} simulates more" if kind == "cpu" else ""
        raise ValueError(f"devices={devices}: this process has {len(here)} of kind {kind}{remedy}")
    return tuple(here[:devices])


def everywhere(devices: Devices) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


def shares(devices: Devices) -> NamedSharding:
    """The leading axis cut, a share for each device."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def check_memory(sd: StableDiffusion, devices: Devices, *, cut: bool) -> None:
    """Raises ValueError, with what would fit, where a device cannot hold the parameters. A CPU does not say."""
    limits = [stats["bytes_limit"] for one in devices if (stats := one.memory_stats()) and "bytes_limit" in stats]
    if not limits:
        return
    limit, itemsize = min(limits), np.dtype(sd.dtype).itemsize
    leaves = jax.tree.leaves(sd.params)
    needs = {size: sum(leaf.size * size for leaf in leaves) for size in (itemsize, 2)}
    mine = needs[itemsize] / (len(devices) if cut else 1)
    if mine <= limit:
        return
    would = [f"dtype='bfloat16' takes {_gib(needs[2])}"] if itemsize > 2 and needs[2] <= limit else []
    would.append(f"parallel.shard cuts them over {-(-needs[itemsize] // limit)} devices or more")
    raise ValueError(
        f"{sd.name}: its parameters take {_gib(mine)} of each device, which has {_gib(limit)}; {'; '.join(would)}"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _copied(sharding: NamedSharding, array: Any) -> jax.Array:
    """A copy on every device; the one that has it already shares its memory."""
    copies = [jax.device_put(array, device) for device in sharding.mesh.devices.flat]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)


def _channels(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """The last axis cut: the output channels of kernels, biases and norms."""
    if not shape or shape[-1] % devices:
        return PartitionSpec()
    return PartitionSpec(*[None] * (len(shape) - 1), AXIS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """A run's state on its devices: every leaf of `carry` is [devices, ...], for b pictures and those filled up."""

    carry: scan.Carry
    b: int = field(metadata={"static": True})


@dataclass(frozen=True)
class Spread:
    """The functions of `programs`, same names and arguments, on several devices.

    What `place` gives, and the `Split` that `begin` gives, stay on them and go to `advance` and `look` as they are.

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

    def place(self, told: Any, axis: int, parts: int | None = None) -> Any:
        """See `programs.place`: numbers from the host, each to its device. Raises ValueError for other than halves."""
        if self.halves and parts not in (None, 2):
            raise ValueError(
                f"halves=True shares out a picture's guided and unguided half, and this run has {parts} part(s): give "
                "guidance_scale above 1 and one prompt without AND, regions or a pull of its own for the picture"
            )

        def one(leaf: Any) -> jax.Array:
            b = leaf.shape[axis] // (parts or 1)
            return self._put(_taken(leaf, self._index(b, parts), axis))

        return jax.tree.map(one, told)

    def begin(self, x: Any, held: Held, shares: np.ndarray, table: Table) -> Split:
        """See `programs.begin`."""
        start = _mapped(self.devices, programs.begin, (0,) * 4)
        return Split(start(self.place(x, 0), held, self.place(shares, 1), self.rows(table)), len(x))

    def draw(self, split: Split, table: Table, keys: jax.Array, draws: np.ndarray | None) -> Split:
        """See `programs.draw`."""
        add = _mapped(self.devices, programs.draw, (0,) * 4, donate=0)
        return replace(split, carry=add(split.carry, self.rows(table), self.place(keys, 0), self.place(draws, 1)))

    def look(self, split: Split, table: Table, index: Any, held: Held) -> tuple[np.ndarray, np.ndarray]:
        """See `programs.look`."""
        see = _mapped(self.devices, programs.look, (0,) * 4)
        x, denoised = see(split.carry, self.rows(table), self._everywhere(index), held)
        return self._joined(x, split.b), self._joined(denoised, split.b)

    def result(self, split: Split) -> np.ndarray:
        """See `programs.result`."""
        return self._joined(scan.result(split.carry), split.b)

    def advance(
        self,
        config: UNetConfig,
        dtype: Any,
        split: Split,
        rows: Table,
        params: Any,
        conditions: Conditions,
        guidance: Guidance | None,
        held: Held,
        regions: jax.Array | None = None,
    ) -> Split:
        """See `programs.advance`."""
        run = self.loop(config, dtype)
        carry = run(split.carry, self.rows(rows), params, conditions, guidance, held, regions)
        return replace(split, carry=carry)

    def loop(self, config: UNetConfig, dtype: Any) -> Any:
        """The program of `advance`, of (carry, rows, params, conditions, guidance, held, regions) on the devices."""
        axes, gather = (0, 0, None, 0, 0, 0, 0), _from_both if self.halves else None
        return _mapped(self.devices, programs.advance, axes, config, dtype, donate=0, gather=gather)

    def rows(self, table: Table) -> Table:
        """A table to every device, or each picture's plan to the device that has it."""
        many = np.ndim(table.timestep) == 2
        return jax.tree.map(lambda a: self.place(a, -1) if many and np.ndim(a) > 1 else self._everywhere(a), table)

    def hoist(self, dtype: Any, params: Any, states: jax.Array, count: jax.Array) -> Chunks:
        """See `programs.hoist`; of states that are placed."""
        return _mapped(self.devices, programs.hoist, (None, 0, 0), dtype)(params, states, count)

    def predict(
        self, config: UNetConfig, dtype: Any, params: Any, x: Any, t: Any, conditions: Conditions
    ) -> np.ndarray:
        """See `programs.predict`."""
        answer = _mapped(self.devices, programs.predict, (None, 0, 0, 0), config, dtype)
        return self._joined(answer(params, *self.place((x, t, conditions), 0)), len(x))

    def decode(self, config: VaeConfig, dtype: Any, params: Any, latents: Any) -> np.ndarray:
        """See `programs.decode`."""
        make = _mapped(self.devices, programs.decode, (None, 0), config, dtype)
        return self._joined(make(params, self.place(latents, 0)), len(latents))

    def encode(self, config: VaeConfig, dtype: Any, params: Any, pixels: Any, noise: Any) -> np.ndarray:
        """See `programs.encode`."""
        make = _mapped(self.devices, programs.encode, (None, 0, 0), config, dtype)
        return self._joined(make(params, *self.place((pixels, noise), 0)), len(pixels))

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
