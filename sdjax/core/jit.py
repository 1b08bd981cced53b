"""A compiled function, and how each platform is asked to compile it.

XLA:CPU orders a program's operations such that as many as possible are ready at once, and keeps their inputs until
then. A U-Net has nothing to gain by it: each of its products already takes all cores. Ordered by memory instead, a
guided SD 1.5 step at 512 x 512 needs 178 MB beside the parameters in place of 565 MB, the decoder 671 in place of 940,
with the same numbers to the last bit in the same time.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from functools import cache, cached_property, update_wrapper, wraps
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state

from sdjax.core.devices import platform
from sdjax.core.keys import settled

# Compiler options by platform; only what was measured to pay.
OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}

OUTSIDE = get_opaque_trace_state()  # of jit, scan, grad and their like

# Called where a program is traced, which is how compiling it begins; set for a while by who wants to tell of it.
tracing: ContextVar[Callable[[], None] | None] = ContextVar("tracing", default=None)


@cache
def options() -> dict[str, Any]:
    """The compiler options for this process's platform, tried once; {} where it does not know them (another jaxlib)."""
    asked = OPTIONS.get(jax.default_backend(), {})
    try:
        jax.jit(lambda x: x, compiler_options=asked)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return asked


def staged() -> bool:
    """Whether another program is being traced, by jit or scan: there even what depends on nothing of it is."""
    return get_opaque_trace_state() != OUTSIDE and isinstance(jax.numpy.empty(()), jax.core.Tracer)


# Where the b pictures are in an argument of a program or in what it gives, for whoever runs it on many devices:
# the number of an axis, or one of these, or a function from the argument to one of them for each of its leaves.
SAME = None  # the same for all pictures, from the host
PARAMS = "params"  # the same for all pictures, and on every device already
KEPT = "kept"  # as another program left it where it was computed, or as it was laid out beforehand
Batch = int | str | None | Callable[[Any], list[int | None]]


class Program:
    """A pure function, compiled once for each set of static arguments and shapes.

    Attributes:
      static: how many of the first arguments are static. donate: which of the others may be overwritten, from 0.
      batch: where the pictures are in each of the others; None where many devices would gain nothing.
      out: where they are in what it gives; KEPT leaves it where it was computed.
      gathers: which static argument, None here, makes of a network's answer for one part of a picture those for all
        parts, where each part has a device of its own.

    The platform is looked up at the first call and not before, since that starts JAX on its devices. Inside another
    program it is a part of that, whose options count. Called there with nothing of that program's, it runs at once, and
    what it gives is a constant of the other.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static: int = 0,
        donate: Sequence[int] = (),
        batch: Sequence[Batch] | None = None,
        out: Batch = 0,
        gathers: int | None = None,
    ) -> None:
        update_wrapper(self, function)
        self.function = _telling(function)
        self.static, self.donate = static, tuple(donate)
        self.batch, self.out, self.gathers = None if batch is None else tuple(batch), out, gathers

    @property
    def name(self) -> str:
        """The function's."""
        return str(self.function.__name__)

    @property
    def how(self) -> dict[str, Any]:
        """`jax.jit`'s arguments."""
        donated = tuple(self.static + i for i in self.donate)
        return {"static_argnums": tuple(range(self.static)), "donate_argnums": donated}

    @cached_property
    def alone(self) -> Any:
        """The jitted function that runs outside of other programs; it can be lowered and exported."""
        return jax.jit(self.function, compiler_options=options(), **self.how)

    @cached_property
    def inside(self) -> Any:
        """The jitted function as a part of another one, which must not bring options."""
        return jax.jit(self.function, **self.how)

    def __call__(self, *args: Any, **named: Any) -> Any:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
        with settled(), jax.ensure_compile_time_eval() if not traced and staged() else nullcontext():
            return (self.inside if traced else self.alone)(*args, **named)

    def lower(self, *args: Any, **named: Any) -> Any:
        """`jax.jit`'s: the program for arguments of these shapes, not yet compiled; elsewhere, without options."""
        here = platform() == jax.default_backend()
        with settled():
            return (self.alone if here else self.inside).lower(*args, **named)

    def _cache_size(self) -> int:
        """How many times it was compiled, as jitted functions tell."""
        return self.alone._cache_size()


def _telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose body runs when it is traced, telling `tracing` of it."""

    @wraps(function)
    def traced(*args: Any, **named: Any) -> Any:
        tell = tracing.get()
        if tell is not None:
            tell()
        return function(*args, **named)

    return traced


def program(
    *,
    static: int = 0,
    donate: Sequence[int] = (),
    batch: Sequence[Batch] | None = None,
    out: Batch = 0,
    gathers: int | None = None,
) -> Callable[[Callable[..., Any]], Program]:
    """Decorates a pure function; see `Program`."""
    return lambda function: Program(function, static, donate, batch, out, gathers)
