"""Adapter: a file of changes to a model's weights, as it was read.

A file names modules in one of several dialects (`names`), and knows nothing of the model it will meet. So an adapter
keeps what the file says, and `bind` finds the parameters of a model that are meant.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.adapters import bind, save
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
      path: the file, None for one that was computed.
      unsaid: metadata that its file lacks, since it came from beside it (PEFT's adapter_config.json).
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
    unsaid: Mapping[str, str] = field(default_factory=dict)

    def bind(self, params: Mapping[str, Any]) -> Bound:
        """The parameters of a model that are meant; params: its tree, {"unet", "text_encoder" ..}.

        Raises ValueError, with one sentence of what does not fit, where it is an adapter for another model.
        """
        return bind.bind(self.name, self.modules, params, family=self.family, strict=self.strict)

    def save(
        self, path: str | os.PathLike[str], dialect: str | None = None, *, model: Mapping[str, Any] | None = None
    ) -> None:
        """Writes the adapter to a .safetensors file, whole or not at all.

        dialect: None for its own names, tensors and metadata, bit for bit; "kohya" (for SDXL with SGM's block names, as
        A1111 reads them; "kohya-diffusers" and "kohya-sgm" say which), or "peft" (LoRA and DoRA alone).
        model: parameters that tell the paths of its modules; for another dialect of an adapter for a custom model.

        Raises CheckpointError where it cannot be written, or the dialect cannot say what it holds.
        """
        save.save(self, Path(path), dialect, model)

    @cached_property
    def sha256(self) -> str:
        """Of its file's bytes, in hex; of one that was computed, of those that `save` would write."""
        return self._hash(whole=True)

    @cached_property
    def short_hash(self) -> str:
        """The 12 digits that A1111 writes into a picture's `Lora hashes`.

        They are of what its trainer noted as `sshs_model_hash`, else of all bytes that follow the header. Source:
        AUTOMATIC1111's webui, modules/hashes.py (addnet_hash_safetensors) and extensions-builtin/Lora/network.py
        (NetworkOnDisk).
        """
        return (self.metadata.get("sshs_model_hash") or self._hash(whole=False))[:12]

    def _hash(self, whole: bool) -> str:
        found = hashlib.sha256()
        for number, part in enumerate(save.content(self)):
            if whole or number:
                found.update(part)
        return found.hexdigest()

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that prompts may call it by: its own, its file's, and what its trainer called it."""
        file = () if self.path is None else (self.path.stem,)
        said = (self.metadata.get("ss_output_name", ""),)
        return tuple(dict.fromkeys(name for name in (self.name, *file, *said) if name))

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
