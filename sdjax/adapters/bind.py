"""From an adapter's modules to a model's parameters, checked: names and shapes, before a number is computed.

An adapter for another model fails by its widths, all over, and one sentence says so: for which family it is, which the
model is, how many modules fit. What one module alone does wrong is told by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.adapters.families import described, family_of_params, text_width
from sdjax.adapters.kinds.delta import Delta
from sdjax.adapters.module_names import Module
from sdjax.adapters.names import TE, TE1, UNET
from sdjax.adapters.table import TEXT_ENCODERS, Table, component_of, leaf_of, modules_of, name_tables
from sdjax.core.errors import listing, nearest
from sdjax.core.notice import notice
from sdjax.core.tree import Shape
from sdjax.weights.names import file_shapes

# By component ("unet", "text_encoder", "text_encoder_2") and the module's path in it, joined by dots as the
# parameters' tree has it: for each of the module's own parameters ("kernel", "bias", "scale") what is done to it.
Bound = Mapping[str, Mapping[str, Mapping[str, Delta]]]
Deltas = Mapping[Module, Mapping[str, Delta]]


@dataclass
class _Found:
    """What became of an adapter's modules."""

    bound: dict[str, dict[str, dict[str, Delta]]] = field(default_factory=dict)
    names: dict[tuple[str, str], Module] = field(default_factory=dict)  # by component and path
    lacking: list[Module] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def bind(name: str, modules: Deltas, params: Mapping[str, Any], *, family: str, strict: bool) -> Bound:
    """The parameters that an adapter's modules mean.

    name: of the adapter, for messages. params: the model's tree, {"unet", "text_encoder" ..}. family: the adapter's.
    strict: whether a module that the model lacks is an error, and is not left aside with a notice.

    Raises ValueError, in one sentence, where it is an adapter for another model.
    """
    tables = name_tables(params)
    held = {component: modules_of(params[component]) for component in tables}
    found = _Found()
    for module, deltas in modules.items():
        _place(module, deltas, tables, held, found)
    if found.wrong or (found.lacking and not found.bound):
        raise ValueError(_misfit(name, family, modules, held, found))
    if found.twice:
        raise ValueError(f"{name} changes one module twice, by two names:{listing(found.twice)}")
    _tell_lacking(name, family, modules, tables, held, found, strict)
    return found.bound


def _place(
    module: Module,
    deltas: Mapping[str, Delta],
    tables: Mapping[str, Table],
    held: Mapping[str, Mapping[str, Mapping[str, Any]]],
    found: _Found,
) -> None:
    """Puts one module where it belongs in `found`."""
    component = component_of(module.part, tables)
    path = None if component is None else tables[component].get(module.name)
    if component is None or path is None:
        found.lacking.append(module)
        return
    if (component, path) in found.names:
        found.twice.append(f"{shown_module(found.names[component, path])} and {shown_module(module)}")
        return
    found.names[component, path] = module
    for which, delta in deltas.items():
        leaf = leaf_of(held[component][path], which)
        if told := _fault(delta, which, held[component][path], path, leaf):
            found.wrong.append(f"{shown_module(module)}: {told}")
        else:
            found.bound.setdefault(component, {}).setdefault(path, {})[leaf] = delta


def _fault(delta: Delta, which: str, leaves: Mapping[str, Any], path: str, leaf: str) -> str | None:
    """What keeps a delta from its parameter, in words; a bias that is not there yet is as long as what comes out."""
    if leaf in leaves:
        shape = file_shapes((path, leaf), tuple(leaves[leaf].shape))[0]
    elif leaf == "bias" and "kernel" in leaves:
        shape = (leaves["kernel"].shape[-1],)
    else:
        return f"it changes a {which}, and this model has {', '.join(leaves)} there"
    try:
        delta.check(shape)
    except ValueError as error:
        return str(error)
    return None


def shown_module(module: Module) -> str:
    """A module for a message, as kohya's files name it."""
    return f"{module.part}_{module.name}"


def _misfit(name: str, family: str, modules: Deltas, held: Mapping[str, Any], found: _Found) -> str:
    """The sentence about an adapter for another model."""
    own, width = family_of_params(held.get(UNET, {}))
    theirs = text_width(widths_of(modules))
    fit = len(modules) - len(found.lacking) - len(found.wrong)
    if (family, theirs) == (own, width) and found.wrong:
        return f"{name} does not fit this model: {fit} of its {len(modules)} modules do, and {found.wrong[0]}"
    what = f"{name} is for {described(family, theirs)}, and this model is {described(own, width)}"
    count = f"{fit} of its {len(modules)} modules fit"
    if found.wrong:
        return f"{what}: {count}, as {found.wrong[0]}. Take an adapter for this model"
    return f"{what}: {count}; it has no {shown_module(found.lacking[0])}. Take an adapter for this model"


def widths_of(modules: Deltas) -> dict[Module, tuple[int, int]]:
    """What each module gives and takes in, (o, i), as far as its weight's delta tells."""
    shapes = {module: shape_of(deltas["weight"]) for module, deltas in modules.items() if "weight" in deltas}
    return {module: (shape[0], shape[1]) for module, shape in shapes.items() if len(shape) > 1}


def shape_of(delta: Delta) -> Shape:
    """Of the weight that a delta is for; () where it fits several."""
    return getattr(getattr(delta, "inner", delta), "shape", ())


def _tell_lacking(
    name: str, family: str, modules: Deltas, tables: Mapping[str, Table], held: Any, found: _Found, strict: bool
) -> None:
    """Says which modules the model does not have: raises ValueError, or warns of what changes no picture."""
    idle = [module for module in found.lacking if _is_idle(module, tables, held)]
    rest = [module for module in found.lacking if module not in set(idle)]
    if rest and strict:
        names = {part: [*tables.get(component_of(part, tables) or "", ())] for part in {one.part for one in rest}}
        lines = [shown_module(one) + nearest(one.name, names[one.part]) for one in rest]
        raise ValueError(
            f"{name} changes {len(rest)} of its {len(modules)} modules that this model does not have:{listing(lines)}"
            "\n  Load it with strict=False to leave them aside"
        )
    if found.lacking:
        names_of = ", ".join(map(shown_module, found.lacking[:4])) + (", .." if len(found.lacking) > 4 else "")
        notice(f"{name}: {len(found.lacking)} of {len(modules)} modules left aside, which this model lacks: {names_of}")


def _is_idle(module: Module, tables: Mapping[str, Table], held: Any) -> bool:
    """Whether a module that a model lacks would change no picture of it.

    That is a text encoder's last layer where the model takes the state before it (Stable Diffusion 2 stores 23 of 24),
    and the first encoder's projection, of which SDXL makes no use.
    """
    if module.part == UNET or (component := component_of(module.part, tables)) is None:
        return False
    if module.name == "text_projection":
        return module.part == TE1 and component == TEXT_ENCODERS[TE1]
    layers = {path.split(".")[3] for path in held[component] if ".layers." in path}
    return module.part in (TE, TE1) and f"encoder_layers_{len(layers)}_" in module.name and len(layers) == 23
