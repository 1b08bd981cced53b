"""What the TPU's compiler says of one program: compiled once, and kept in a folder by all that it depends on."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.tpu import hlo
from experiments.tpu.chips import CHIPS, Chip
from sdjax.core.devices import AXIS, channels, tracing_for
from sdjax.core.files import write


@dataclass(frozen=True)
class Estimate:
    """Of one program on one chip of so many.

    Attributes:
      flops, bytes, optimal: of `cost_analysis()`: operations, bytes, and seconds at the peaks; of loops one round.
      scheduled: seconds by the compiler's own estimate, loops counted; see `hlo`. by_kind: what of them goes to what.
      scratch, arguments, results: bytes of memory. sent: bytes of the results of collectives, by kind.
      kernels: of Pallas that told no cost, which `scheduled` lacks. compiled: seconds that compiling took here.
    """

    flops: float
    bytes: float
    optimal: float
    scheduled: float
    by_kind: dict[str, float]
    scratch: int
    arguments: int
    results: int
    sent: dict[str, float]
    kernels: int
    compiled: float

    def seconds(self, chip: Chip) -> float:
        """As scheduled, but no less than it takes to read the arguments and to write the results."""
        return max(self.scheduled, (self.arguments + self.results) / chip.bandwidth)


class Refused(Exception):
    """The compiler did not take a program, in one line of its own."""


def mesh(name: str, count: int = 1) -> Mesh:
    """So many chips of a kind in a row. Raises ValueError for one that libtpu does not know, or without libtpu."""
    from jax.experimental import topologies

    chip = CHIPS[name]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=chip.topologies[count])
    except Exception as error:  # of libtpu's own kinds
        told = " ".join(str(error).split())
        raise ValueError(
            f"no compiler for a TPU {name} here: pip install 'jax[tpu]' brings it ({told[:200]})"
        ) from None
    return Mesh(np.array(found.devices[:count]), (AXIS,))


def whole(array: Any, chips: Mesh) -> Any:
    """An array's shape, which says that it lies whole on each of the chips."""
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype, sharding=NamedSharding(chips, PartitionSpec()))


def cut(array: Any, chips: Mesh) -> Any:
    """An array's shape, which says that its last axis is cut over the chips; one that they do not divide lies whole."""
    where = NamedSharding(chips, channels(np.shape(array), chips.size))
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype, sharding=where)


def alone(part: Any, chips: Mesh) -> Any:
    """One part of a network, lowered, whose arrays may lie in memory as it likes: so they come from its neighbours."""
    free = Format(Layout.AUTO, NamedSharding(chips, PartitionSpec()))
    return jax.jit(part, in_shardings=free, out_shardings=free).lower(*part.arrays)


def lowered(make: Callable[[], Any]) -> Any:
    """What `make()` lowers, for TPUs."""
    with tracing_for("tpu"):
        return make()


def estimate(program: Any, name: str, folder: Path) -> Estimate:
    """Of a lowered program, on chips of that name. folder: where what is known already is kept.

    Raises Refused, which is remembered as well; OSError where the folder cannot be written.
    """
    file = folder / f"{name}-{_key(program)}.json"
    if not file.exists():
        write(json.dumps(_told(program, CHIPS[name]), indent=1).encode(), file, "an estimate")
    told = json.loads(file.read_bytes())
    if "refused" in told:
        raise Refused(told["refused"])
    return Estimate(**told)


def _key(program: Any) -> str:
    """The same for the same program and the same compiler."""
    versions = (jax.__version__, metadata.version("libtpu"))
    return hashlib.sha256(repr((versions, program.as_text())).encode()).hexdigest()[:24]


def _told(program: Any, chip: Chip) -> dict[str, Any]:
    start = time.monotonic()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"refused": " ".join(str(error).split())[:400]}
    seconds, whole, memory = time.monotonic() - start, compiled.cost_analysis(), compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # what is donated is written in its own place
    cost = hlo.cost(compiled.as_text(), chip.clock, chip.bandwidth)
    return asdict(
        Estimate(
            flops=whole["flops"],
            bytes=whole["bytes accessed"],
            optimal=whole["optimal_seconds"],
            scheduled=cost.seconds,
            by_kind=dict(sorted(cost.by_kind.items(), key=lambda one: -one[1])[:6]),
            scratch=memory.temp_size_in_bytes,
            arguments=memory.argument_size_in_bytes,
            results=results,
            sent=cost.sent,
            kernels=cost.kernels,
            compiled=seconds,
        )
    )
