"""load_controlnet: from a name to a control network of whatever kind."""

import os
from collections.abc import Callable

from sdjax.adapters.control.control_adapter import ControlAdapter, ControlConfig
from sdjax.adapters.control.controlnet import read_controlnet
from sdjax.adapters.control.kind import LLLITE, T2I, Kind, kind_of
from sdjax.adapters.control.lllite import read_lllite
from sdjax.adapters.control.locate import Located, locate
from sdjax.adapters.control.t2i_adapter import read_t2i_adapter
from sdjax.adapters.control.weights import Weights
from sdjax.core.short import short

_READERS: dict[str, Callable[[Located, Kind], tuple[ControlConfig, Weights]]] = {
    T2I: read_t2i_adapter,
    LLLITE: read_lllite,
}


def load_controlnet(
    source: str | os.PathLike[str], name: str | None = None, *, variant: str | None = None, revision: str = "main"
) -> ControlAdapter:
    """A ControlNet, ControlNet-Union, Control-LoRA, T2I-Adapter or ControlNet-LLLite, for `generate(control=[..])`.

    Args:
      source: a .safetensors file, a folder of diffusers', or a Hub id: `owner/name`, `owner/name/folder`,
        `owner/name/file.safetensors`. What it is, its tensors tell.
      name: what messages and settings call it; by default the file's name without its ending, or the folder's.
      variant: which files of a folder where there are several, as "fp16". revision: of a Hub id.

    Raises:
      CheckpointError: whatever is wrong with the file, in one message that names the tensor; for other files what they
        are and what reads them. ConfigError: a config.json that asks for what this package does not have.
    """
    for what, said in (("name", name), ("variant", variant)):
        if said is not None and (not isinstance(said, str) or not said):
            raise ValueError(f"{what} must be a text, not {short(said)}")
    located = locate(source, variant, revision)
    kind = kind_of(located.headers)
    config, weights = _READERS.get(kind.kind, read_controlnet)(located, kind)
    return ControlAdapter(name or located.name, kind.kind, config, weights, located.headers[0].metadata, located.path)
