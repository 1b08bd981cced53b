"""An adapter from its file: what each tensor is, told by its name, its shape and what stands beside it.

Read in this order: where the file is (`locate`), its header, checked before a byte of it is trusted
(`weights.files`), whose each name is (`names`), then what each module's tensors do (`kinds`). No tensor is passed over:
one that means nothing is an error, or with strict=False a warning, since a file of which a part is ignored makes other
pictures than its author's. Numbers stay where they are, in the file: it is mapped, looked through for NaN, and read
again where it is used.

What is no change of weights has readers of its own, in READERS: a new kind of file is one line there.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from sdjax.adapters import foreign
from sdjax.adapters.adapter import Adapter
from sdjax.adapters.bind import widths_of
from sdjax.adapters.families import family_of
from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.kinds import read_module
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.locate import CONFIG, Located, locate
from sdjax.adapters.module_names import Module
from sdjax.adapters.names import PEFT_PREFIX, UNET
from sdjax.adapters.peft_config import beside, strengths, with_alpha
from sdjax.adapters.spelling import BUNDLE, Spelling, spell, with_nearest
from sdjax.adapters.textual_inversion import TextualInversion
from sdjax.core.errors import CheckpointError, listing, shown
from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.weights.files import Entry, Header, read_single_header
from sdjax.weights.names import READABLE
from sdjax.weights.tensors import Pages, check_finite
from sdjax.weights.write import DTYPES as WRITABLE

ALL_DTYPES = {**WRITABLE, **READABLE}
NUMBERS = ("alpha", "on_input", "scale")  # single numbers, which files have in any dtype


class Reader(Protocol):
    """What reads one kind of file that is no change of weights."""

    @classmethod
    def claims(cls, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        """Whether a file of tensors of these names and shapes is of this kind."""

    @classmethod
    def read(cls, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], where: str) -> Any:
        """From a file's tensors; `where` it is, for messages. Raises CheckpointError."""


READERS: tuple[type[Reader], ...] = (Hypernetwork, TextualInversion)


def load_adapter(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    strict: bool = True,
    revision: str = "main",
    convention: str = "a1111",
) -> Any:
    """An adapter from a file, for `with_adapters` and for `generate`.

    Args:
      source: a .safetensors file, a folder of diffusers' or PEFT's, or a Hub id: `owner/name`,
        `owner/name/file.safetensors`.
      name: what prompts and messages call it; by default the file's name without its ending.
      strict: whether a tensor that means nothing, or a module that the model lacks, is an error; else such are left
        aside, with one warning that lists them.
      revision: of a Hub id. convention: "a1111", "lycoris" or "peft": what a scale other than 1 means where they
        disagree (see `kinds`).

    Returns:
      An Adapter; for a file of new words a TextualInversion, for a hypernetwork's a Hypernetwork.

    Raises:
      CheckpointError: whatever is wrong with the file, in one message that names the tensor.
    """
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"name must be a text, not {short(name)}")
    if not isinstance(strict, bool):
        raise ValueError(f"strict must be True or False, not {short(strict)}")
    located = locate(source, revision)
    header = read_single_header(located.path)
    if not header.tensors:
        raise CheckpointError(f"{located.path} holds no tensors")
    called = name or located.name
    spelled = spell(header.tensors)
    if not spelled.known and not spelled.words and not any(spelled.unknown.values()):
        return _read_other(header, called)
    return _read_adapter(located, header, spelled, called, strict, convention)


def _read_adapter(
    located: Located, header: Header, spelled: Spelling, name: str, strict: bool, convention: str
) -> Adapter:
    _tell_unknown(header, spelled, strict)
    modules = _by_module(header, spelled)
    used = [*spelled.known, *spelled.words]
    _check_dtypes(header, spelled)
    pages = Pages(header.path)
    tensors = {
        one: _view(pages, header.tensors[one]) for one in header.tensors if header.tensors[one].dtype in ALL_DTYPES
    }
    for one in used:
        if tensors[one].dtype.kind not in "biu":
            check_finite(tensors[one].reshape(-1), f"{header.path}: {shown(one)}")
    pages.release()
    unsaid = beside(located.config)
    said = strengths({**header.metadata, **unsaid}, located.config or header.path)
    if (
        not said
        and spelled.dialect.prefixes[UNET] == PEFT_PREFIX
        and not any("alpha" in own for own in modules.values())
    ):
        notice(f"{header.path}: no {CONFIG} lies beside it, which says how strong it is; alpha is taken for the rank")
    deltas: dict[Module, Mapping[str, Delta]] = {}
    for module, names in modules.items():
        own = with_alpha(module, {suffix: tensors[one] for suffix, one in names.items()}, said)
        deltas[module] = _deltas(header, spelled, names, own, convention)
    family = family_of(widths_of(deltas), header.metadata)
    words = _words(header, spelled, tensors)
    return Adapter(
        name, spelled.dialect.name, family, deltas, tensors, header.metadata, strict, words, header.path, unsaid
    )


def _deltas(
    header: Header, spelled: Spelling, names: Mapping[str, str], tensors: Mapping[str, np.ndarray], convention: str
) -> dict[str, Delta]:
    try:
        return read_module(tensors, convention)
    except ValueError as error:
        first, told = next(iter(names.values())), str(error)
        for ours, theirs in spelled.dialect.words.items():
            told = told.replace(ours, theirs)
        raise CheckpointError(f"{header.path}: {shown(first)} and what belongs to it: {told}") from None


def _tell_unknown(header: Header, spelled: Spelling, strict: bool) -> None:
    """Says which tensors mean nothing: raises CheckpointError, or warns."""
    if not spelled.unknown:
        return
    count = f"{len(spelled.unknown):,} of {len(header.tensors):,} tensors"
    lines = [with_nearest(name, one, spelled.dialect) for name, one in [*spelled.unknown.items()][:8]]
    if strict or not (spelled.known or spelled.words):
        if what := foreign.what_it_is(header):
            raise CheckpointError(f"{header.path} is {what}")
        more = [f"and {len(spelled.unknown) - 8:,} more"] if len(spelled.unknown) > 8 else []
        raise CheckpointError(
            f"{header.path} holds {count} that mean nothing to a Stable Diffusion model:{listing([*lines, *more], 9)}"
            "\n  load_adapter(..., strict=False) leaves them aside"
        )
    modules = {one.module if one else name for name, one in spelled.unknown.items()}
    notice(f"{header.path}: {count}, of {len(modules):,} modules, mean nothing and are left aside, as {lines[0]}")


def _by_module(header: Header, spelled: Spelling) -> dict[Module, dict[str, str]]:
    """Of each module the names of its tensors, by what they are. Raises CheckpointError where one comes twice."""
    modules: dict[Module, dict[str, str]] = {}
    for name, (module, suffix) in spelled.known.items():
        other = modules.setdefault(module, {}).setdefault(suffix, name)
        if other != name:
            raise CheckpointError(
                f"{header.path} holds one tensor twice, by two names: {shown(other)} and {shown(name)}; two adapters "
                "were mixed. Take the file as its author published it"
            )
    return modules


def _check_dtypes(header: Header, spelled: Spelling) -> None:
    """Raises CheckpointError for a tensor of a dtype that is no floating-point number's, but for single numbers."""
    for name in (*spelled.known, *spelled.words):
        entry = header.tensors[name]
        number = name in spelled.known and spelled.known[name].suffix in NUMBERS and entry.dtype in ALL_DTYPES
        if entry.dtype not in READABLE and not number:
            known = " or ".join(READABLE)
            raise CheckpointError(
                f"{header.path}: {shown(name)} is of the dtype {entry.dtype}, which is not read; expected {known}"
            )


def _view(pages: Pages, entry: Entry) -> np.ndarray:
    """A tensor as it lies in its file; no memory is taken."""
    dtype = ALL_DTYPES[entry.dtype]
    count = (entry.stop - entry.start) // dtype.itemsize
    return np.frombuffer(pages, dtype, count, entry.start).reshape(entry.shape)


def _words(header: Header, spelled: Spelling, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The new words that came with an adapter."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, (word, rest) in spelled.words.items():
        found.setdefault(word, {})[rest] = tensors[name]
    return {
        word: TextualInversion.read(word, own, {}, f"{header.path}: {BUNDLE}{shown(word, 60)}")
        for word, own in found.items()
    }


def _read_other(header: Header, name: str) -> Any:
    """What a file is that changes no weights, by its reader. Raises CheckpointError where none has one."""
    shapes = {one: entry.shape for one, entry in header.tensors.items()}
    reader = next((reader for reader in READERS if reader.claims(shapes, header.metadata)), None)
    if reader is None:
        foreign.refuse(header)
    for one, entry in header.tensors.items():
        if entry.dtype not in READABLE:
            raise CheckpointError(f"{header.path}: {shown(one)} is of the dtype {entry.dtype}, which is not read")
    pages = Pages(header.path)
    tensors = {one: _view(pages, entry) for one, entry in header.tensors.items()}
    return reader.read(name, tensors, header.metadata, str(header.path))
