"""A checkpoint that is open: what it says about itself is known and checked, no weight has been read.

A folder in the diffusers layout and a single file in the original one both come to this form, so that whoever loads
one need not know which it was.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from jax.typing import DTypeLike

from sdjax.weights.names import Layout
from sdjax.weights.tensors import on_device

Json = Mapping[str, Any]


class Read(Protocol):
    """How one component's weights are read."""

    def __call__(
        self,
        component: str,
        expected: Mapping[str, Any],
        dtype: DTypeLike | None = None,
        place: Callable[[np.ndarray], Any] = on_device,
    ) -> tuple[dict[str, Any], Layout]:
        """Its parameters, in each tensor's own dtype or all in `dtype`, and how to save them as they were.

        `expected` is a nested dict of `jax.ShapeDtypeStruct`; `place`: see `tensors.read_tensors`. Raises
        CheckpointError.
        """


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open checkpoint.

    Attributes:
      configs: config.json of each network by component: "unet", "vae", "text_encoder", "text_encoder_2".
      files: what else the diffusers layout holds, by path from its root: "model_index.json",
        "scheduler/scheduler_config.json", "tokenizer/vocab.json", ...
      read: reads one component's weights. Raises CheckpointError.
      notes: what the user should know: tensors left alone, a prediction type that had to be guessed.
    """

    configs: Mapping[str, Json]
    files: Mapping[str, bytes]
    read: Read
    notes: tuple[str, ...] = ()

    @property
    def index(self) -> Json:
        """model_index.json."""
        return json.loads(self.files["model_index.json"])

    @property
    def scheduler(self) -> Json:
        """scheduler_config.json."""
        return json.loads(self.files["scheduler/scheduler_config.json"])

    def tokenizer(self, name: str) -> dict[str, bytes]:
        """The files of the folder "tokenizer" or "tokenizer_2", by name."""
        return {path.removeprefix(f"{name}/"): data for path, data in self.files.items() if path.startswith(f"{name}/")}

    def with_scheduler(self, **changes: Any) -> "Checkpoint":
        """The same with other values in its scheduler's config."""
        text = json.dumps({**self.scheduler, **changes}, indent=2) + "\n"
        return replace(self, files={**self.files, "scheduler/scheduler_config.json": text.encode()})

    def with_network(self, name: str, config: Json, read: Callable[..., tuple[dict[str, Any], Layout]]) -> "Checkpoint":
        """The same with another network for its component `name`.

        read: what then reads it, as `Read` does but without being told the component.
        """

        def read_any(component: str, *how: Any, **named: Any) -> tuple[dict[str, Any], Layout]:
            return read(*how, **named) if component == name else self.read(component, *how, **named)

        return replace(self, configs={**self.configs, name: config}, read=read_any)
