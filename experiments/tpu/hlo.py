"""What a compiled TPU program costs, read from its text: the compiler's own estimate of every operation, loops counted.

    time of a computation = sum of its operations' times
    time of a loop        = its rounds x its body;   of a branch: its dearest side                            (1)
    time of an operation  = the cycles that the compiler's cost model gave it / the clock, where it gave any  (2)
                          = the bytes that it reads and writes in memory / the bandwidth, elsewhere           (3)

`cost_analysis()["optimal_seconds"]` is another thing: the larger of operations over the peak and bytes over the
bandwidth, of every operation, with loops left out; no program is faster than that. Equation 2 knows what tiles and
padding waste. What is copied ahead beside other work (the `-start` and `-done` of copies and slices) takes no time
here, nor do collectives: their bytes are told apart. A kernel of Pallas tells its own cost or none.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

SIZES = {
    **{"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5},
    **{"s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8},
}
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"),
    *("replica-id", "opt-barrier", "add-dependency", "custom-call"),
}
BEGINS = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
NAMED = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
FAST = re.compile(r"S\([1-9]\d*\)")  # of a layout: not in the chip's large memory


@dataclass(frozen=True)
class Operation:
    """A line of a computation: its opcode, the arrays that it gives, its operands' names, and the whole text."""

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    text: str


@dataclass
class Cost:
    """Of a computation, in all rounds of its loops.

    Attributes:
      seconds: equations 1 to 3. by_kind: the same by what the time goes to. sent: bytes of the results of collectives,
        by their kind. kernels: how often a Pallas kernel runs that told no cost.
    """

    seconds: float = 0.0
    by_kind: dict[str, float] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)
    kernels: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds another one, so many times."""
        self.seconds += times * other.seconds
        self.kernels += times * other.kernels
        for mine, its in ((self.by_kind, other.by_kind), (self.sent, other.sent)):
            for kind, value in its.items():
                mine[kind] = mine.get(kind, 0.0) + times * value


def cost(text: str, clock: float, bandwidth: float) -> Cost:
    """Of a program's text, `compiled.as_text()`. Raises ValueError where a loop does not tell its rounds."""
    computations, entry = parse(text)
    made: dict[str, Cost] = {}

    def of(name: str) -> Cost:
        if name not in made:
            made[name] = total = Cost()
            lines = computations[name]
            for one in lines.values():
                _add(total, one, lines)
        return made[name]

    def _add(total: Cost, one: Operation, lines: Mapping[str, Operation]) -> None:
        called = CALLED.findall(one.text)
        if one.opcode == "while":
            body = next(name for name in called if f"body=%{name}" in one.text)
            condition = next(name for name in called if f"condition=%{name}" in one.text)
            return total.add(of(body), rounds(one, lines, computations[condition]))
        if one.opcode == "conditional":
            sides = BRANCHES.search(one.text)
            names = [name.strip(" %") for name in sides[1].split(",")] if sides else called
            return total.add(max((of(name) for name in names), key=lambda side: side.seconds))
        if one.opcode in ("call", "async-start") and called:
            return total.add(of(called[0]))
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return total.add(Cost(sent={kind: bytes_of(one.result)}))
        kernel = one.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in one.text
        seconds = _seconds(one, lines, clock, bandwidth)
        return total.add(Cost(seconds, {_kind(one): seconds}, kernels=int(kernel)))

    return of(entry)


def parse(text: str) -> tuple[dict[str, dict[str, Operation]], str]:
    """(operations by computation and name, the name of the first to run)."""
    computations: dict[str, dict[str, Operation]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        if lines is None:
            if begins := BEGINS.match(line):
                lines = computations.setdefault(begins[1], {})
                entry = begins[1] if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            lines = None
        elif named := NAMED.match(line):
            lines[named[1]] = _operation(named[1], named[2])
    return computations, entry


def _operation(name: str, text: str) -> Operation:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    opcode = OPCODE.match(text, end)
    assert opcode is not None, text
    inside = text[opcode.end() - 1 :]
    operands = re.findall(r"%([\w.\-]+)", inside[: _closing(inside) + 1])
    return Operation(name, opcode[1], text[:end], tuple(operands), text)


def _closing(text: str) -> int:
    """Where the bracket ends that `text` begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"no end of the bracket in {text[:80]!r}")


@cache
def bytes_of(result: str, slow: bool = False) -> float:
    """Of an array or a tuple of them, as the text names it. slow: of those alone that lie in the large memory."""
    total = 0.0
    for dtype, shape, layout in ARRAY.findall(result):
        if dtype in SIZES and not (slow and FAST.search(layout)):
            total += SIZES[dtype] * math.prod(int(axis) for axis in shape.split(",") if axis)
    return total


def _seconds(one: Operation, lines: Mapping[str, Operation], clock: float, bandwidth: float) -> float:
    cycles = [int(number) for number in CYCLES.findall(one.text)]
    if cycles:
        return sum(cycles) / clock
    if one.opcode in FREE or one.opcode.endswith(("-start", "-done")):
        return 0.0
    out = bytes_of(one.result, slow=True)
    # Of a large operand a slice reads no more than it gives.
    read = (bytes_of(lines[name].result, slow=True) for name in one.operands if name in lines)
    if "slice" in one.name or "slice" in one.opcode:
        read = (min(size, out) for size in read)
    return (out + sum(read)) / bandwidth


def _kind(one: Operation) -> str:
    """What an operation's time is counted as."""
    if one.opcode != "fusion":
        return one.opcode
    return "products" if re.search(r"dot_general|conv_general", one.text) else "the rest"


def rounds(loop: Operation, lines: Mapping[str, Operation], condition: Mapping[str, Operation]) -> int:
    """Of a loop that counts up from 0: the constant that its condition compares with.

    Raises ValueError where it finds none.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(told[1])
    last = list(condition.values())[-1]
    for one in (last, *condition.values()):
        for name in one.operands:
            if name in condition and (value := re.match(r"\S+ constant\((\d+)\)", condition[name].text)):
                return int(value[1])
    raise ValueError(f"the loop {loop.name} does not tell how often it runs")
