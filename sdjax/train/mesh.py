"""Mesh: many devices, of one process or of several, and what of a training run lies where.

    axes       (data, fsdp): data x fsdp devices; each of the data rows holds the whole state, cut over its fsdp devices
    state      a leaf of 65,536 numbers or more is cut on its last axis over fsdp where that divides it; else copied
    batch      cut on its first axis over (data, fsdp)                                                        (1)

fsdp = 1 is plain data parallelism, data = 1 fully sharded (Zhao et al. 2023, arXiv:2304.11277). The last axis of a
kernel (HWIO or IO) is its outputs', 320 times a power of two in Stable Diffusion. XLA gathers a kernel before it is
used and scatters its gradient. Small leaves, most of them by number, are a thousandth of the parameters. The rule asks
for a leaf's shape alone, so that an optimiser's moments and the averages lie as their parameters do.

A program on a mesh is the program: a mean over the batch is one over all devices' pictures, whatever their number.

Several processes (after `jax.distributed.initialize()`) run the same program; each makes its own rows of every batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"
LEAST = 65_536  # numbers in a leaf that is cut


def device_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (of all processes, unless given) in rows of `fsdp`. Raises ValueError where that does not divide."""
    found = list(jax.devices() if devices is None else devices)
    if fsdp < 1 or len(found) % fsdp:
        raise ValueError(f"fsdp={fsdp}: the state cannot be cut so often over {len(found)} devices; give a divisor")
    return Mesh(np.array(found).reshape(-1, fsdp), (DATA, FSDP))


def leaf_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where a leaf of this shape lies; see equation 1."""
    cut = bool(shape) and np.prod(shape) >= LEAST and shape[-1] % mesh.shape[FSDP] == 0
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), FSDP) if cut else PartitionSpec())


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: leaf_sharding(leaf.shape, mesh), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def born(make: Callable[..., Any], mesh: Mesh, *args: Any) -> Any:
    """`make(*args)`, every leaf of it made where it lies: none is ever whole on a device that holds a part of it."""
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make, *args), mesh))(*args)


def place(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, the same in every process, laid out by equation 1; what lies so already stays.

    Of shapes, which stand for arrays where a step is lowered and not run, shapes that lie so.
    """

    def one(leaf: Any) -> Any:
        sharding = leaf_sharding(np.shape(leaf), mesh)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(sharding=sharding)
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree)


def fetched(tree: Any) -> Any:
    """A tree of arrays on the host, whole, in every process; all of them ask for it."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def own_rows(mesh: Mesh, b: int) -> slice:
    """Which of a batch's b rows this process makes. Raises ValueError where b does not divide over the devices."""
    check_divides(mesh, b)
    here = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    each = b // mesh.size
    return slice(here[0] * each, (here[-1] + 1) * each)


def share(batch: Any, mesh: Mesh) -> Any:
    """A batch on its devices; this process's rows given, which with one process are all. Raises ValueError."""
    processes = len({device.process_index for device in mesh.devices.flat})
    for leaf in jax.tree.leaves(batch):
        check_divides(mesh, len(leaf) * processes)
    sharding = batch_sharding(mesh)
    if processes == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def check_divides(mesh: Mesh, b: int, pieces: int = 1) -> None:
    """Raises ValueError where b pictures are not as many for each device, in each piece of an accumulation."""
    if b % (mesh.size * pieces):
        by = f"{mesh.size} devices" + (f" in {pieces} pieces" if pieces > 1 else "")
        raise ValueError(f"a batch of {b} cannot be shared by {by}; give a multiple of {mesh.size * pieces}")
