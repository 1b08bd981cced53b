"""Where the modules of an adapter are in a model of its family: underscores become dots again.

A dialect with dots, or with the U-Net's other vocabulary, needs paths that an adapter's own names do not tell. They
come from the shapes of its family's published networks, which are traced for it (2 to 4 s, once in a process), or from
the parameters of a model at hand.
"""

from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Any

from sdjax.adapters import families
from sdjax.adapters.module_names import Module
from sdjax.adapters.names import TE, TE1, TE2, UNET, Dialect
from sdjax.adapters.sgm import sgm_modules
from sdjax.adapters.table import TEXT_ENCODERS, Table, component_of, name_tables
from sdjax.config import read_networks
from sdjax.config.presets import PRESETS
from sdjax.core.errors import CheckpointError
from sdjax.nn.shapes import expected_params


class Paths:
    """What an adapter's parts and modules are called in other dialects.

    Attributes:
      paired: whether the model has two text encoders, which kohya numbers.
      sgm: whether kohya's trainer names the U-Net's blocks as SGM does: for SDXL and its refiner.
    """

    def __init__(self, name: str, family: str, modules: Iterable[Module], model: Mapping[str, Any] | None):
        self.name, self.family, self.model = name, family, model
        both = model is not None and model.keys() >= set(TEXT_ENCODERS.values())
        self.paired = family == families.SDXL or both or any(module.part == TE2 for module in modules)
        self.paired &= family != families.REFINER
        self.sgm = family in (families.SDXL, families.REFINER) or (family == families.CUSTOM and self.paired)

    def part(self, part: str, dialect: Dialect) -> str:
        """What a dialect calls a part: kohya numbers encoders where there are two, diffusers names the component."""
        if part == UNET or (part != TE and self.paired):
            return part
        if TE in dialect.prefixes:
            return TE
        return TE2 if self.family == families.REFINER else TE1

    def path(self, module: Module, dialect: Dialect) -> str:
        """A module's path, with dots, in a dialect's vocabulary. Raises CheckpointError where nothing tells it."""
        tables, sgm = self._tables
        component = component_of(module.part, tables)
        path = None if component is None else tables[component].get(module.name)
        if path is None:
            raise CheckpointError(
                f"{self.name}: {module.part}_{module.name} is no module of {self._whose()}; {_REMEDY}"
            )
        if module.part == UNET:
            return sgm[path] if dialect.blocks == "sgm" else path
        # transformers' modules lost "text_model" in 5.6, and files that PEFT writes since are told by that.
        bare = dialect.dotted and not module.name.startswith("text_model_")
        return path.removeprefix("text_model.") if bare else path

    def _whose(self) -> str:
        return families.described(self.family) if self.model is None else "the model given"

    @cached_property
    def _tables(self) -> tuple[Mapping[str, Table], Mapping[str, str]]:
        if self.model is not None:
            return _tables(self.model)
        if self.family not in families.PRESETS:
            raise CheckpointError(
                f"{self.name} is for {self._whose()}, and its names do not tell where its modules are; {_REMEDY}"
            )
        return _tables(published(families.PRESETS[self.family]))


_REMEDY = "give model=, the parameters of the model that it is for"


@cache
def published(preset: str) -> Mapping[str, Any]:
    """The shapes of a published family's U-Net and text encoders."""
    configs = PRESETS[preset].configs
    return expected_params(read_networks({name: configs[name] for name in configs if name != "vae"}))


def _tables(params: Mapping[str, Any]) -> tuple[Mapping[str, Table], Mapping[str, str]]:
    return name_tables(params), sgm_modules(params[UNET]) if UNET in params else {}
