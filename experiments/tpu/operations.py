"""How many operations a program's products take, two to a multiply-add, counted in what JAX traced: loops in full."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def operations(run: Callable[..., Any], *arrays: Any) -> float:
    """Of `run(*arrays)`, by shapes; of a branch its dearest side."""
    return _of(jax.make_jaxpr(run)(*arrays).jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(_one(equation) for equation in jaxpr.eqns)


def _one(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out = params["dimension_numbers"].rhs_spec[0]  # of the kernel's axes, that of the channels that go out
        inner = math.prod(size for axis, size in enumerate(kernel) if axis != out)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in params["branches"])
    return params.get("length", 1) * sum(map(_of, _inside(params)))


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The programs in an operation's parameters; of a `while`, one round."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
