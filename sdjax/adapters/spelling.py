"""What all the names in a file say together: the dialect, and of each tensor its module and what it is of it.

A file is in one dialect, but for what tools have mixed: so each name that its dialect does not know is looked for in
the others. What no dialect knows, or no model has, is told apart here, and whoever reads the file says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdjax.adapters.kinds import SUFFIXES
from sdjax.adapters.module_names import blocks, is_text, nearest_module
from sdjax.adapters.names import DIALECTS, UNET, Dialect, Spelled
from sdjax.core.errors import closest, shown

BUNDLE = "bundle_emb."


@dataclass(frozen=True)
class Spelling:
    """What a file's names say.

    Attributes:
      dialect: in which most are. known: what each tensor of a module is, by name.
      unknown: names that mean nothing, with what they would say.
      words: of tensors of new words, the word and the rest of the name.
    """

    dialect: Dialect
    known: Mapping[str, Spelled]
    unknown: Mapping[str, Spelled | None]
    words: Mapping[str, tuple[str, str]]


def spell(names: Iterable[str]) -> Spelling:
    """What the names of a file's tensors say."""
    every = list(names)
    words = {name: found for name in every if (found := _word(name))}
    names = [name for name in every if name not in words]
    dialect, read = _dialect(names)
    known = {name: one for name, one in read.items() if _is_known(one)}
    unknown = {name: read.get(name) for name in names if name not in known}
    return Spelling(dialect, known, unknown, words)


def _dialect(names: list[str]) -> tuple[Dialect, dict[str, Spelled]]:
    """The dialect that most of the names are in, and what each says in it, or in another where it says nothing."""
    best, most, others = DIALECTS["kohya"], dict[str, Spelled](), dict[str, Spelled]()
    for dialect in DIALECTS.values():
        read = {name: found for name in names if (found := dialect.read(name))}
        if len(read) > len(most):
            best, most = dialect, read
        if len(read) == len(names):
            break
        others = read | others
    return best, others | most


def _word(name: str) -> tuple[str, str] | None:
    """The word and the rest, of the name of a tensor of a new word."""
    if not name.startswith(BUNDLE):
        return None
    word, _, rest = name.removeprefix(BUNDLE).rpartition(".")
    if word.endswith(".string_to_param"):
        word, rest = word.removesuffix(".string_to_param"), f"string_to_param.{rest}"
    return (word, rest) if word and rest else None


def _is_known(spelled: Spelled) -> bool:
    module, suffix = spelled
    has = blocks(module.name) is not None if module.part == UNET else is_text(module.name)
    return has and suffix in SUFFIXES


def with_nearest(name: str, spelled: Spelled | None, dialect: Dialect) -> str:
    """The name, with what was perhaps meant where something is near."""
    if spelled is None:
        return shown(name)
    (part, module), suffix = spelled
    known = blocks(module) is not None if part == UNET else is_text(module)
    near = module if known else nearest_module(module)
    ends = [suffix] if suffix in SUFFIXES else closest(suffix[:100], SUFFIXES)
    try:
        return f"{shown(name)} (nearest: {dialect.write(part, near, ends[0])})" if near and ends else shown(name)
    except KeyError:  # of a dialect that has no name for that
        return shown(name)
