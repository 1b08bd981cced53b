"""An adapter's file, written whole or not at all: as it came, or in another dialect's names.

As it came it is a copy, bit for bit. In another dialect names change, and where two dialects lay the same numbers out
otherwise (DoRA's lengths) the shape; no number does. What a file means must stay what it meant:

    kohya   alpha in every module, since programs take a missing one for the rank;
    PEFT    alpha in the metadata, where diffusers looks for it (`peft_config`), and the kinds that it has: LoRA, DoRA.

A1111 reads SDXL by SGM's block names, so "kohya" has these for SDXL, as kohya's own trainer writes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdjax.adapters import families
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.module_names import Module
from sdjax.adapters.names import DIALECTS, DOWN, MAGNITUDE, UP
from sdjax.adapters.paths import Paths
from sdjax.adapters.peft_config import METADATA, Said, packed
from sdjax.adapters.spelling import spell
from sdjax.core.errors import CheckpointError, listing, unknown
from sdjax.core.notice import notice
from sdjax.weights.tensors import pages_of
from sdjax.weights.write import Draft, parts, write_file

CHOICES = ("kohya", "kohya-sgm", "kohya-diffusers", "peft")
_BASES = {families.SD1: "sd_v1", families.SD2: "sd_v2", families.SDXL: "sdxl_base_v1-0"}
_IN_PEFT = {DOWN, UP, "alpha", "scale", "dora_scale", MAGNITUDE, "lora_up.bias"}
Tensors = Mapping[str, np.ndarray]


class Savable(Protocol):
    """What is asked of an adapter, as `Adapter` has it."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def modules(self) -> Mapping[Module, Mapping[str, Delta]]: ...
    @property
    def tensors(self) -> Tensors: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def unsaid(self) -> Mapping[str, str]: ...


def save(adapter: Savable, path: Path, dialect: str | None, model: Mapping[str, Any] | None) -> None:
    """Writes an adapter. dialect: None for its own names, else one of CHOICES. model: parameters that tell its paths.

    Raises CheckpointError where it cannot be written, or the dialect cannot say what it holds; ValueError for an
    unknown dialect.
    """
    if dialect is not None and dialect not in CHOICES:
        raise ValueError(unknown(f"dialect {dialect!r} is unknown", dialect, CHOICES))
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: the name of an adapter's file ends with .safetensors")
    found = content(adapter) if dialect is None else _content(*renamed(adapter, dialect, model))
    write_file(path, lambda unfinished: _write(unfinished, found))


def content(adapter: Savable) -> Iterator[bytes | memoryview]:
    """The bytes of an adapter's file, those before its tensors first: as it came, where it came from one."""
    file = next((pages for array in adapter.tensors.values() if (pages := pages_of(array)) is not None), None)
    if file is None or adapter.unsaid:
        yield from _content(adapter.tensors, {**adapter.metadata, **adapter.unsaid})
        return
    file.check()
    bytes_, header = memoryview(file), 8 + int.from_bytes(file[:8], "little")
    yield bytes_[:header]
    yield bytes_[header:]


def _content(tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    return parts({name: Draft.of(np.asarray(array)) for name, array in tensors.items()}, metadata)


def _write(path: Path, content: Iterable[bytes | memoryview]) -> None:
    with open(path, "wb") as file:
        file.writelines(content)


def renamed(
    adapter: Savable, dialect: str, model: Mapping[str, Any] | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """An adapter's tensors and metadata in a dialect, one of CHOICES. Raises CheckpointError."""
    paths = Paths(adapter.name, adapter.family, adapter.modules, model)
    names = {"kohya": "kohya-sgm" if paths.sgm else "kohya", "kohya-diffusers": "kohya"}
    target = DIALECTS[names.get(dialect, dialect)]
    to_peft, spelled = dialect == "peft", spell(adapter.tensors)
    modules: dict[Module, dict[str, np.ndarray]] = {module: {} for module in adapter.modules}
    for name, (module, suffix) in spelled.known.items():
        modules[module][suffix] = adapter.tensors[name]
    if to_peft:
        _check_peft(adapter.name, modules)
    tensors: dict[str, np.ndarray] = {}
    said: dict[str, dict[str, Said]] = {}
    for module, own in modules.items():
        part, path, alpha = paths.part(module.part, target), paths.path(module, target), _alpha(adapter, module, own)
        new = _in_peft(own, adapter.name, module) if to_peft else _in_kohya(own, alpha)
        tensors |= {target.write(part, path, suffix): array for suffix, array in new.items()}
        said.setdefault(part, {})[path] = Said(len(own.get(DOWN, ())), float(alpha), MAGNITUDE in new)
    if spelled.words and to_peft:
        notice(f"{adapter.name}: diffusers reads no words in a LoRA's file; save its embeddings by themselves")
    elif spelled.words:
        tensors |= {name: adapter.tensors[name] for name in spelled.words}
    kept = {key: value for key, value in adapter.metadata.items() if not key.startswith("sshs_") and key != METADATA}
    return tensors, kept | ({METADATA: packed(said)} if to_peft else _kohya_metadata(adapter))


def _alpha(adapter: Savable, module: Module, own: Tensors) -> np.ndarray:
    """Of a LoRA, as its file has it, or as what stands beside the file says; 0 where none is meant."""
    if "alpha" in own and "scale" not in own:
        return own["alpha"].reshape(())
    delta = adapter.modules[module].get("weight")
    strength = getattr(getattr(delta, "inner", delta), "strength", 1.0)
    return np.float32(strength * len(own[DOWN])) if DOWN in own else np.float32(0)  # type: ignore[return-value]


def _in_kohya(own: Tensors, alpha: np.ndarray) -> dict[str, np.ndarray]:
    """A module's tensors as kohya's files have them."""
    found = dict(own)
    if MAGNITUDE in found:
        lengths = found.pop(MAGNITUDE)
        found["dora_scale"] = lengths.reshape(-1, *[1] * (own[DOWN].ndim - 1))
    return found | ({"alpha": alpha} if DOWN in own and "scale" not in own else {})


def _in_peft(own: Tensors, name: str, module: Module) -> dict[str, np.ndarray]:
    """A module's tensors as PEFT's files have them. Raises CheckpointError for DoRA's lengths of inputs."""
    found = {suffix: array for suffix, array in own.items() if suffix not in ("alpha", "scale", "dora_scale")}
    if "dora_scale" in own:
        lengths, outputs = own["dora_scale"], len(own[UP])
        if lengths.size != outputs or len(lengths) != outputs:
            raise CheckpointError(
                f"{name}: {module.part}_{module.name} has a DoRA length for each of its inputs, and PEFT's files have "
                "one for each output; save it as kohya's"
            )
        found[MAGNITUDE] = lengths.reshape((1, -1, 1, 1) if own[DOWN].ndim == 4 else (-1,))
    return found


def _check_peft(name: str, modules: Mapping[Module, Tensors]) -> None:
    """Raises CheckpointError for kinds that PEFT's files do not have."""
    others = {f"{one.part}_{one.name}: {suffix}" for one, own in modules.items() for suffix in own.keys() - _IN_PEFT}
    if others:
        raise CheckpointError(
            f"{name} cannot be saved in PEFT's dialect, which has LoRA and DoRA alone:{listing(sorted(others))}"
        )


def _kohya_metadata(adapter: Savable) -> dict[str, str]:
    """What programs look for, as far as it is true of this file."""
    deltas = [delta for own in adapter.modules.values() for delta in own.values()]
    ranks = {delta.rank for delta in deltas}
    plain = all(delta.kind in ("LoRA", "LoCon") for delta in deltas)
    found = {"ss_network_module": "networks.lora" if plain else "lycoris.kohya"}
    if len(ranks) == 1 and None not in ranks:
        found["ss_network_dim"] = str(ranks.pop())
    if adapter.family in _BASES:
        found |= {"ss_base_model_version": _BASES[adapter.family], "ss_v2": str(adapter.family == families.SD2)}
    return {key: value for key, value in found.items() if key not in adapter.metadata}
