"""Adapter: a file of changes to a model's weights, as it was read.

A file names modules in one of several dialects (`names`), and knows nothing of the model it will meet. So an adapter
keeps what the file says, and `bind` finds the parameters of a model that are meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sdjax.adapters.kinds.delta import Delta

# By component ("unet", "text_encoder", "text_encoder_2") and the module's path in it, joined by dots as the
# parameters' tree has it: for each of the module's own parameters ("kernel", "bias", "scale") what is done to it.
Bound = Mapping[str, Mapping[str, Mapping[str, Delta]]]


class Module(NamedTuple):
    """A module as a file names it: which part of a model, and the words of its name joined by "_"."""

    part: str
    name: str


@dataclass(frozen=True, eq=False)
class Adapter:
    """Changes to a model's weights.

    Attributes:
      name: what prompts and messages call it. dialect: how its file names modules. family: of models that it is for.
      modules: what it does to each module, by "weight" and "bias".
      tensors: of the file, as they lie there, by name. metadata: of the file.
    """

    name: str
    dialect: str
    family: str
    modules: Mapping[Module, Mapping[str, Delta]]
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    def bind(self, params: Mapping[str, Any]) -> Bound:
        """The parameters of a model that are meant; params: its tree, {"unet", "text_encoder" ..}.

        Raises ValueError, with one sentence of what does not fit, where it is an adapter for another model.
        """
        raise NotImplementedError
