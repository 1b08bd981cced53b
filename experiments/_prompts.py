"""The file of prompts that thousands of pictures are made of: read whole, every line of it checked.

A prompt a line; or, in one named *.jsonl, an object a line, {"prompt": ..} and arguments of its own. Lines end with
"\\n" or "\\r\\n" and with nothing else: what Python's `splitlines` takes for line ends besides, as U+2028, U+0085 and
"\\x0b", may stand in a prompt. A byte order mark, which Windows' editor writes, is none of the text.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from experiments import _files
from sdjax.core.errors import closest
from sdjax.core.numbers import is_number

Line = Mapping[str, Any]  # what is asked of one picture: its prompt, and arguments of its own

OWN = ("negative_prompt", "sampler", "steps", "schedule", "guidance_scale")  # what a line may say for itself
LARGEST = 64 << 20  # bytes
MOST = 1_000_000  # lines
# Characters of what is asked of a picture, as JSON. It must be read again out of the picture, where twice as many are
# the most (`sdjax.metadata.picture.LONGEST`) and other settings stand beside it; no model sees a hundredth of them.
LONGEST = 50_000
MARKS = {  # byte order marks; UTF-32's first, which begins as UTF-16's does
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
EXAMPLE = '{"prompt": "a red circle", "steps": 30}'


def read(path: str) -> dict[int, Line]:
    """What is asked of each picture, by the number of its line from 1; empty lines are left out.

    Raises ValueError naming every line that is wrong, OSError.
    """
    label = f"--prompts_file={path}"
    lines = _decoded(_files.read(path, label, LARGEST), label)
    asked: dict[int, Line] = {}
    wrong: dict[str, str] = {}
    reader = _object if path.lower().endswith(".jsonl") else _prompt
    for number, line in lines.items():
        try:
            asked[number] = _bounded(reader(line))
        except ValueError as error:
            wrong[f"{label}, line {number}"] = str(error)
    if wrong:
        raise ValueError(named(wrong))
    return asked


def named(wrong: Mapping[str, str], most: int = 5) -> str:
    """What is wrong with lines, by where they are, in one sentence."""
    told = [f"{place}: {message}" for place, message in list(wrong.items())[:most]]
    return "; ".join(told) + (f"; and {len(wrong) - most} lines more" if len(wrong) > most else "")


def _decoded(data: bytes, label: str) -> dict[int, str]:
    """The lines that are not empty, by number."""
    mark = next((name for begin, name in MARKS.items() if data.startswith(begin)), "")
    if mark or b"\x00" in data[:2]:  # an ASCII sign beside a zero
        raise ValueError(f"{label} is {mark or 'UTF-16'} text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{label} is no UTF-8 text (line {where}); save it as UTF-8") from None
    if text.count("\n") > MOST:
        raise ValueError(
            f"{label} has more than {MOST:,} lines; make several files of it, each with an --out of its own"
        )
    # A byte order mark before a later line: two files were joined.
    stripped = ((i, line.removeprefix("\ufeff").strip(" \t\r")) for i, line in enumerate(text.split("\n"), 1))
    lines = {i: line for i, line in stripped if line}
    if not lines:
        raise ValueError(f"{label} holds no prompt; write one a line")
    return lines


def _prompt(line: str) -> Line:
    """A line of text. Raises ValueError."""
    if "\r" in line:
        raise ValueError("a carriage return within it (line ends of an old Mac?); end lines with \\n")
    if line.startswith("{") and isinstance(_parsed(line), dict):
        raise ValueError("an object, as in files named *.jsonl; name this one so")
    return {"prompt": _text(line, "prompt")}


def _bounded(line: Line) -> Line:
    """What a picture can say of itself. Raises ValueError where it is too long for that."""
    if (length := len(json.dumps(line))) > LONGEST:
        raise ValueError(
            f"{length:,} characters (as JSON) are more than the {LONGEST:,} that a picture's settings hold"
        )
    return line


def _object(line: str) -> Line:
    """A line of JSON. Raises ValueError."""
    found = _parsed(line)
    if not isinstance(found, dict) or "prompt" not in found:
        raise ValueError(f"write an object with a prompt, as {EXAMPLE}")
    for name in found:
        if name not in ("prompt", *OWN):
            near = closest(name, OWN)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(f"{name[:40]!r} is no argument of its own that a line can have: {', '.join(OWN)}{hint}")
    return {name: _check(value, name) for name, value in found.items()}


class _Twice(ValueError):
    """A name that stands twice in an object: which one is meant?"""


def _parsed(line: str) -> Any:
    """JSON's value; None where it is none. Raises ValueError for a name that stands twice."""
    try:
        return json.loads(line, object_pairs_hook=_once)
    except _Twice:
        raise
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise _Twice(f"{name[:40]!r} stands twice in it")
    return found


# What a value may be, before a model is there to judge it.


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {_short(value)}")
    if "\x00" in value or not value.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ValueError(f"{name} holds a null character or half of one, which no text can")
    return value


def _optional(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _whole(value: Any, name: str) -> int:
    if not is_number(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, not {_short(value)}")
    return value


def _number(value: Any, name: str) -> float | None:
    """A finite one, or None for the model's own."""
    known = value is None or is_number(value)
    try:
        usable = known and (value is None or math.isfinite(float(value)))
    except OverflowError:
        usable = False
    if not usable:
        raise ValueError(f"{name} must be a finite number, or null for the model's own, not {_short(value)}")
    return value


def _short(value: Any) -> str:
    return json.dumps(value)[:40]


def _check(value: Any, name: str) -> Any:
    """A value of an argument, by the types that are declared of it. Raises ValueError."""
    from sdjax.request.arguments.arguments import DECLARED
    from sdjax.request.arguments.topic import NONE

    types = DECLARED[name].types
    if str in types:
        return (_optional if NONE in types else _text)(value, name)
    return (_whole if types == (int,) else _number)(value, name)
