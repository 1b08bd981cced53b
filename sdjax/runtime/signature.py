"""A call of a program, known by what its compiled form depends on.

    name, static arguments, structure and shapes of all others  ->  one compiled program

The same in every process, so that a program can be found again that another one has exported.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from sdjax.core.jit import Program
from sdjax.diffusion import guiders
from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.scan import Carry
from sdjax.diffusion.table import Table
from sdjax.nn.conditioning import Added, Chunks, Conditions, Guide, Kinds
from sdjax.nn.hypernetwork import HypernetworkLayer
from sdjax.nn.hypernetwork import Step as HypernetworkStep
from sdjax.nn.linear import LowRank
from sdjax.nn.worn import Strengths


@dataclass(frozen=True)
class ProgramSignature:
    """What of a call decides on its program.

    Attributes:
      function: the program's name. static: its static arguments.
      structure: the tree that the others are. shapes: of its leaves, as "float32[1,64,64,4]".
    """

    function: str
    static: tuple[Any, ...]
    structure: Any
    shapes: tuple[str, ...]

    @classmethod
    def of(cls, program: Program, args: Sequence[Any]) -> tuple["ProgramSignature", tuple[Any, ...]]:
        """The call, and the arguments that are not static, in order and with their defaults."""
        bound = inspect.signature(program).bind(*args)
        bound.apply_defaults()
        static, data = bound.args[: program.static], bound.args[program.static :]
        leaves, structure = jax.tree.flatten(data)
        return cls(program.name, static, structure, tuple(map(_shape, leaves))), data

    def described(self) -> dict[str, Any]:
        """As JSON has it, without the structure."""
        return {"function": self.function, "static": [_plain(one) for one in self.static], "shapes": list(self.shapes)}

    @property
    def digest(self) -> str:
        """A digest of all of it, the same in every process."""
        return digest(self.described() | {"structure": str(self.structure)})


def digest(value: Any) -> str:
    """sha256, in hex, of what JSON holds; configs and dtypes are put into words first."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else jnp.dtype(value).name


def _register() -> None:
    """How the arguments' trees are written beside an exported program: their static fields as JSON."""
    for node in (
        Carry,
        Chunks,
        Conditions,
        Guidance,
        Guide,
        HypernetworkLayer,
        HypernetworkStep,
        KnownRegion,
        LowRank,
        Table,
    ):
        export.register_pytree_node_serialization(
            node,
            serialized_name=f"sdjax.{node.__name__}",
            serialize_auxdata=lambda static: json.dumps(static, default=guiders.to_json).encode(),
            deserialize_auxdata=lambda text: tuple(json.loads(text, object_hook=guiders.from_json)),
        )
    for kind in (Added, Kinds, Strengths):
        export.register_namedtuple_serialization(kind, serialized_name=f"sdjax.{kind.__name__}")


_register()
