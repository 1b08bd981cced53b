"""What pictures wear: adapters beside the model's own weights, each picture its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdjax.core.short import short
from sdjax.diffusion.progress import Run
from sdjax.model.spec import ModelSpec
from sdjax.request.arguments.topic import NEVER, NONE, UNUSUAL, Flag, Topic, argument
from sdjax.request.worn import Closet, Outfits, are_words, worn_by
from sdjax.text.tags import Tag

Adapters = Sequence[tuple[Any, Any]] | Mapping[str, Any] | Any


@dataclass(frozen=True, eq=False, repr=False)
class AdapterArguments(Topic):
    """See `generate`. A file holds adapters' names, hashes and scales in words, which say what is to be given again."""

    adapters: Any = argument(None, str, NONE, told=UNUSUAL, each="picture", raw=True)
    adapters_folder: Any = argument(
        None, told=NEVER, raw=True, flag=Flag("Where <lora:name:0.8> of a prompt is found, a folder.", kind=str)
    )

    def outfits(self, spec: ModelSpec, tags: Sequence[Sequence[Tag]], runs: Sequence[Run]) -> Outfits | None:
        """What the pictures of these runs wear, by `adapters` and by the tags in their prompts. Raises ValueError."""
        if self.adapters_folder is None and are_words(self.adapters):
            raise ValueError(
                f"these settings are of pictures that wore adapters, {short(self.adapters)}: give their folder as "
                'adapters_folder=, or give them, as adapters=[(sdjax.load_adapter("style.safetensors"), 0.8)]'
            )
        named = self.adapters if isinstance(self.adapters, Mapping) else {}
        closet = Closet(named, None if self.adapters_folder is None else Path(self.adapters_folder))
        worn = worn_by(None if named else self.adapters, closet, tags, runs)
        if named and not any(tags):
            raise ValueError(
                "adapters by name are worn where a prompt says so, as <lora:name:0.8> under prompt_style='a1111', and "
                "no prompt does; adapters=[(adapter, 0.8)] are worn by all"
            )
        return Outfits.of(spec, worn, runs) if worn else None

    def checked(self, outfits: Outfits | None, count: int) -> "AdapterArguments":
        """In words, one for all pictures or one for each."""
        said = [None if outfits is None else outfits.said(i) for i in range(count)]
        return replace(self, adapters=said[0] if len(set(said)) == 1 else said, adapters_folder=None)
