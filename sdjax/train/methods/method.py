"""Method: what of a model learns, and how the rest takes part.

    trainable = method.start(params, key)           before the first step; float32
    params'   = method.join(trainable, params)      pure: the parameters that the objective sees
    loss      = objective(method.join(trainable, params), batch, key)                                       (1)

The gradient of (1) with respect to `trainable` alone is what a step takes. So what does not learn has no gradient, no
optimiser state and no average, and cannot move by weight decay either (diffusers#1665). What `join` gives shares every
array that it does not change.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from sdjax.core.tree import Params


class Method(Protocol):
    """See above; a frozen dataclass, hashable and equal by value."""

    def start(self, params: Mapping[str, Any], key: jax.Array) -> Params:
        """What learns, before the first step: a nested dict of float32 arrays. params: by component.

        Raises ValueError where a rule or a choice of layers matches nothing, or leaves a parameter uncovered.
        """

    def join(self, trainable: Params, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters by component, with what learns in its place."""


@runtime_checkable
class Written(Protocol):
    """A method whose outcome is a file or folder beside a model, and not the model itself."""

    def write(self, trainable: Params, params: Mapping[str, Any], folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes what has been learnt as other programs read it; returns the file or folder. Whole or not at all."""
