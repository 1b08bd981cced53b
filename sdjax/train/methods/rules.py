"""Rules: which parameters learn, by their paths, so that none learns or stays by accident.

A path is the component's name and the checkpoint's names below it, "unet/down_blocks.0/attentions.0/proj_in/kernel".
A rule is a regular expression and whether what it matches learns; of several the first that matches counts. A parameter
that no rule matches is an error, and so is a rule that matches nothing: a typing mistake in either would train
something else than was meant, silently.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from sdjax.core import tree
from sdjax.core.errors import unknown
from sdjax.core.tree import Params, Path

Rule = tuple[str, bool]
"""A regular expression, found anywhere in a path, and whether what it matches learns."""


def learning(params: Mapping[str, Any], rules: Sequence[Rule]) -> set[Path]:
    """The paths of the parameters that learn.

    Raises ValueError for a rule that is no regular expression or matches no parameter, for a parameter that no rule
    matches, and where nothing learns.
    """
    patterns = [(_compiled(pattern), learns) for pattern, learns in rules]
    used, chosen = set(), set()
    paths = list(tree.flatten(params))
    for path in paths:
        name = "/".join(path)
        which = next((i for i, (pattern, _) in enumerate(patterns) if pattern.search(name)), None)
        if which is None:
            raise ValueError(f"no rule says whether {name} learns; add one for it, or ('', False) at the end")
        used.add(which)
        if patterns[which][1]:
            chosen.add(path)
    for i, (pattern, _) in enumerate(rules):
        if i not in used and pattern:  # the empty rule at the end may be left with nothing
            known = sorted({"/".join(path[:2]) for path in paths})
            raise ValueError(unknown(f"the rule {pattern!r} matches no parameter that is left to it", pattern, known))
    if not chosen:
        raise ValueError("nothing learns: no rule that says so matches a parameter")
    return chosen


def part(params: Mapping[str, Any], paths: set[Path]) -> Params:
    """The parameters at these paths, in float32, which is what they learn in."""
    flat = {path: leaf for path, leaf in tree.flatten(params).items() if path in paths}
    return tree.unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in flat.items()})


def joined(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the leaves of `others` in the place of theirs; arrays are shared."""
    return tree.unflatten(tree.flatten(params) | tree.flatten(others))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the rule {pattern!r} is no regular expression: {error}") from None
