"""Networks that take part in training or in measuring, out of .safetensors files of others: by name, strictly.

Such files hold more than is needed, as a classifier's last layer: what is not asked for is left where it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sdjax.core.tree import Params, Shape, flatten
from sdjax.core.tree import Path as TreePath
from sdjax.weights.files import read_single_header
from sdjax.weights.names import Place, file_shapes, tensor_name
from sdjax.weights.tensors import ErrorContext, read_tensors


def read_network(
    paths: Sequence[str | Path],
    expected: Params,
    spellings: Callable[[str], list[str]] = lambda name: [name],
    what: str = "the network",
) -> Params:
    """Parameters float32 shaped as `expected`, out of the first of the files that holds each.

    spellings: the names that a tensor may have, by its usual one. what: it is, for messages. Raises CheckpointError.
    """
    headers = [read_single_header(Path(path)) for path in paths]
    known = {name for path in flatten(expected) for name in spellings(tensor_name(path))}
    own, seen = [], set[str]()
    for header in headers:
        tensors = {name: entry for name, entry in header.tensors.items() if name in known - seen}
        seen |= tensors.keys()
        own.append(replace(header, tensors=_once(tensors, spellings)))
    blame = ErrorContext(
        f"{' and '.join(map(str, paths))} does not hold {what}", "name a file that does; its names are torch's"
    )

    def places(path: TreePath, shape: Shape) -> list[Place]:
        return [Place(name, tuple(file_shapes(path, shape))) for name in spellings(tensor_name(path))]

    return read_tensors(own, expected, places, blame, jnp.float32)[0]


def _once(tensors: dict[str, Any], spellings: Callable[[str], list[str]]) -> dict[str, Any]:
    """Without the tensors that are there under an earlier one of their names too."""
    later = {other for name in tensors for other in spellings(name)[1:] if other != name}
    return {name: entry for name, entry in tensors.items() if name not in later}
