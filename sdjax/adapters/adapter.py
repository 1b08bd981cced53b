"""Adapter: a file of changes to a model's weights, as it was read.

A file names modules in one of several dialects (`names`), and knows nothing of the model it will meet. So an adapter
keeps what the file says, and `bind` finds the parameters of a model that are meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.adapters import bind
from sdjax.adapters.bind import Bound as Bound
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.module_names import Module as Module


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Changes to a model's weights.

    Attributes:
      name: what prompts and messages call it. dialect: how its file names modules. family: of models that it is for.
      modules: what it does to each module, by "weight" and "bias".
      tensors: of the file, as they lie there, by name. metadata: of the file.
      strict: whether a module that a model lacks is an error, and is not left aside with a notice.
      embeddings: the words that came in the same file, by name.
      path: the file, None for one that was computed. hash_of_file, hash_of_tensors: SHA-256 of all of it, and of what
        follows its header; "" for one that was computed.
    """

    name: str
    dialect: str
    family: str
    modules: Mapping[Module, Mapping[str, Delta]]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    strict: bool = True
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def bind(self, params: Mapping[str, Any]) -> Bound:
        """The parameters of a model that are meant; params: its tree, {"unet", "text_encoder" ..}.

        Raises ValueError, with one sentence of what does not fit, where it is an adapter for another model.
        """
        return bind.bind(self.name, self.modules, params, family=self.family, strict=self.strict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it holds, as ("LoRA", "DoRA"), the most frequent first."""
        found = [delta.kind for deltas in self.modules.values() for delta in deltas.values()]
        return tuple(sorted(dict.fromkeys(found), key=found.count, reverse=True))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its factors, each once, the smallest first."""
        found = {delta.rank for deltas in self.modules.values() for delta in deltas.values()}
        return tuple(sorted(rank for rank in found if rank is not None))

    @property
    def bytes(self) -> int:
        """Of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __repr__(self) -> str:
        """Kinds, dialect, family, rank, modules and MB, in one line."""
        ranks = self.ranks
        rank = "" if not ranks else f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") + ", "
        words = "" if not self.embeddings else f", words {', '.join(map(repr, self.embeddings))}"
        return (
            f"<Adapter {self.name!r}: {' + '.join(self.kinds) or 'nothing'} for {self.family}, {rank}"
            f"{len(self.modules)} modules, {self.bytes / 1e6:.1f} MB, {self.dialect} names{words}>"
        )
