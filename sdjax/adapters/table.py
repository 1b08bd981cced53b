"""Which of a model's parameters a file means: a table from every name that a module has in files to its path here.

No rule turns underscores back into dots; so all names of all modules are made from the parameters that are at hand, in
both vocabularies of the U-Net (diffusers' and SGM's, which share no name) and for text encoders with and without
"text_model" before them. Then a name is looked up (`module_names` says why that is enough).
"""

from collections.abc import Mapping
from typing import Any

from sdjax.adapters.names import TE, TE1, TE2, UNET
from sdjax.adapters.sgm import module_paths, sgm_modules
from sdjax.core import tree

Table = Mapping[str, str]
TEXT_ENCODERS = {TE1: "text_encoder", TE2: "text_encoder_2"}
_WEIGHTS = ("kernel", "scale", "embedding")


def name_tables(params: Mapping[str, Any]) -> dict[str, Table]:
    """By component: the path, joined by dots, of every module by all names that it has in files.

    params: a model's tree, {"unet", "text_encoder" ..}; arrays or shapes.
    """
    tables: dict[str, Table] = {}
    if UNET in params:
        tables[UNET] = {
            _underscored(name): path for path, sgm in sgm_modules(params[UNET]).items() for name in (path, sgm)
        }
    for component in TEXT_ENCODERS.values():
        if component in params:
            paths = module_paths(params[component])
            tables[component] = {
                _underscored(name): path for path in paths for name in (path, path.removeprefix("text_model."))
            }
    return tables


def component_of(part: str, params: Mapping[str, Any]) -> str | None:
    """The component that a part of a file is for; None where the model has none, or two for one that must be alone."""
    if part != TE:
        name = TEXT_ENCODERS.get(part, part)
        return name if name in params else None
    held = [name for name in TEXT_ENCODERS.values() if name in params]
    return held[0] if len(held) == 1 else None


def leaf_of(module: Mapping[str, Any], which: str) -> str:
    """The name here of a module's "weight" or "bias", which need not be there."""
    if which == "bias":
        return "bias"
    return next((name for name in _WEIGHTS if name in module), "kernel")


def modules_of(network: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of each module of a network by its path, joined by dots, and their own names."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in tree.flatten(network).items():
        found.setdefault(".".join(path[:-1]), {})[path[-1]] = leaf
    return found


def _underscored(path: str) -> str:
    return path.replace(".", "_")
