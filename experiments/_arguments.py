"""Flags of the command line that are arguments of `generate`: their types, defaults and help are declared there.

A flag has its argument's name, and what it is given goes to `generate` as it is; a pair of numbers is a list of two.
"""

from collections.abc import Iterable
from typing import Any

from absl import flags

from sdjax.request.arguments.arguments import DECLARED, DEFAULTS
from sdjax.request.arguments.topic import Flag

FLAGS: dict[str, Flag] = {name: one.flag for name, one in DECLARED.items() if one.flag is not None}
PAIRS = tuple(name for name in FLAGS if DECLARED[name].types == (list,))
PLAIN = tuple(name for name in FLAGS if name not in PAIRS)


def define_flags(names: Iterable[str] = tuple(FLAGS), among: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of these arguments, by default of all that have one. among: those of the program."""
    for name in names:
        flag, default = FLAGS[name], DEFAULTS[name]
        kind = flag.kind or DECLARED[name].types[0]
        bounds = {"lower_bound": flag.least, "upper_bound": flag.most}
        if kind is list:
            flags.DEFINE_list(name, default, flag.help, among)
        elif kind is bool:
            flags.DEFINE_boolean(name, default, flag.help, among)
        elif kind is int:
            flags.DEFINE_integer(name, default, flag.help, flag_values=among, **bounds)  # type: ignore[call-overload]
        elif kind is float:
            flags.DEFINE_float(name, default, flag.help, flag_values=among, **bounds)  # type: ignore[call-overload]
        else:
            flags.DEFINE_string(name, default, flag.help, among)


def given(values: Any) -> dict[str, Any]:
    """What the flags say, by argument. `values` has a flag an attribute. Raises ValueError for what is no pair."""
    made = {name: getattr(values, name) for name in PLAIN}
    return made | {name: _pair(getattr(values, name), name) for name in PAIRS if getattr(values, name) is not None}


def _pair(value: list[str], name: str) -> tuple[int, ...]:
    if len(value) != 2 or not all(part.strip().isdecimal() for part in value):
        raise ValueError(f"--{name}={','.join(value)}: write two whole numbers, as --{name}=1024,1024")
    return tuple(map(int, value))
