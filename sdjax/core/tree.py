"""Parameters as nested dicts: one dict for each module, named as the checkpoint names it, arrays at the leaves."""

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


Shape = tuple[int, ...]


def flatten(tree: Mapping[str, Any], above: Path = ()) -> dict[Path, Any]:
    """Leaves of a nested dict by their paths."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, (*above, key))
        else:
            flat[(*above, key)] = value
    return flat


def unflatten(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dict whose leaves are `flat`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        level = tree
        for key in path[:-1]:
            level = level.setdefault(key, {})
        level[path[-1]] = value
    return tree


def modules_named(params: Mapping, names: tuple[str, ...]) -> Iterator[tuple[str, Mapping]]:
    """Every module of one of these names in a network's parameters: (its path, joined by dots; its parameters)."""
    for name, child in params.items():
        if not isinstance(child, Mapping):
            continue
        if name in names:
            yield name, child
        else:
            yield from ((f"{name}.{path}", module) for path, module in modules_named(child, names))


Params = Any
