"""A call of one of `programs`' functions, known by what its compiled program depends on.

    function, static arguments, structure and shapes of all others  ->  one program

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

from sdjax.diffusion.guidance import Guidance
from sdjax.diffusion.inpaint import KnownRegion
from sdjax.diffusion.scan import Carry
from sdjax.diffusion.table import Table
from sdjax.nn.conditioning import Added, Chunks, Conditions
from sdjax.runtime import programs

# The functions that a picture goes through.
FUNCTIONS = (
    "encode_text", "encode_image", "estimate_depth", "precompute_kv", "noise", "begin", "draw", "inspect_row",
    "run_rows", "decode", "encode",
)  # fmt: skip


@dataclass(frozen=True)
class ProgramSignature:
    """What of a call decides on its program.

    Attributes:
      function: one of FUNCTIONS. static: its static arguments.
      structure: the tree that the others are. shapes: of its leaves, as "float32[1,64,64,4]".
    """

    function: str
    static: tuple[Any, ...]
    structure: Any
    shapes: tuple[str, ...]

    @classmethod
    def of(
        cls, function: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple["ProgramSignature", tuple[Any, ...]]:
        """The call, and the arguments that are not static, in order and with their defaults."""
        program = getattr(programs, function)
        bound = inspect.signature(program).bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.pop("gather", None)  # None but where a picture's halves are on two devices
        static, data = bound.args[: program.leading], bound.args[program.leading :]
        leaves, structure = jax.tree.flatten(data)
        return cls(function, static, structure, tuple(map(_shape, leaves))), data

    def described(self) -> dict[str, Any]:
        """As JSON has it, without the structure."""
        return {"function": self.function, "static": [_plain(one) for one in self.static], "shapes": list(self.shapes)}

    @property
    def signature(self) -> str:
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
    for node in (Carry, Chunks, Conditions, Guidance, KnownRegion, Table):
        export.register_pytree_node_serialization(
            node,
            serialized_name=f"sdjax.{node.__name__}",
            serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda text: tuple(json.loads(text)),
        )
    export.register_namedtuple_serialization(Added, serialized_name="sdjax.Added")


_register()
