"""This process's devices: which there are, what kind they are, and arrays laid out over them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_elsewhere: ContextVar[str | None] = ContextVar("elsewhere", default=None)


def platform() -> str:
    """What runs the programs that are traced now: "cpu", "gpu" or "tpu"."""
    return _elsewhere.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether programs run on a CPU, where some things are better done in another way."""
    return platform() == "cpu"


@contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Within it programs are traced for a platform that this process need not have, to be lowered and never run.

    JAX remembers what it traced by shapes alone, and forgets it here, before and after.
    """
    token = _elsewhere.set(platform)
    try:
        jax.clear_caches()
        yield
    finally:
        _elsewhere.reset(token)
        jax.clear_caches()


AXIS = "devices"


Devices = tuple[jax.Device, ...]


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


def copied(array: Any, devices: Devices) -> jax.Array:
    """A copy of an array on every device; the one that has it already shares its memory."""
    copies = [jax.device_put(array, device) for device in devices]
    return jax.make_array_from_single_device_arrays(array.shape, everywhere(devices), copies)


def cut_channels(array: Any, devices: Devices) -> jax.Array:
    """The last axis cut, a share for each device: the output channels of kernels, biases and norms.

    An array that they do not divide is copied to every device.
    """
    axes = channels(array.shape, len(devices))
    return jax.device_put(array, NamedSharding(Mesh(np.array(devices), (AXIS,)), axes))


def channels(shape: tuple[int, ...], count: int) -> PartitionSpec:
    """An array's last axis over `count` devices; nothing where they do not divide it."""
    divides = bool(shape) and shape[-1] % count == 0
    return PartitionSpec(*[None] * (len(shape) - 1), AXIS) if divides else PartitionSpec()


def split(devices: Devices) -> NamedSharding:
    """The leading axis cut, a share for each device."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
