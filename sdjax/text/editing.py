"""Prompts that change along a run, and prompts in several parts, as AUTOMATIC1111's web UI reads them [1].

With n network evaluations and `when` either a count of them (8) or, written with a point, a fraction of n (0.5):

    [a:b:when]  a, and from `when` on b     [b:when]  nothing, then b     [a::when]  a, then nothing
    [a|b|c]     a, b, c in turn             a AND b :1.2                  two prompts, the second of weight 1.2

Each of them may stand inside another, and a backslash takes any sign's meaning. The grammar is

    prompt := (text | "(" prompt [":" prompt] ")" | "[" prompt "]" | edit | turns)*
    edit   := "[" [prompt ":"] prompt ":" number "]"           turns := "[" prompt ("|" prompt)+ "]"

and a bracket or colon that fits nowhere is text, but a | that fits nowhere, or a backslash with nothing after it on its
line, makes the whole prompt text. With loose brackets the grammar is ambiguous: "[a:3]]" may be an edit and a bracket,
or text alone. A1111's parser with the version of lark it asks for (1.1.2) answers by the interpreter's hash seed; here
all that can be an edit is one.

A1111 counts evaluations from 0 and compares with ends that count from 1, so that the first text gets one more than
`when` says: [a:b:2] is a, a, a, b, ... and [a|b] is a, a, b, a, b, ... Here too, since pictures depend on it.

[1] https://github.com/AUTOMATIC1111/stable-diffusion-webui modules/prompt_parser.py: schedule_parser,
    get_learned_conditioning_prompt_schedules, reconstruct_cond_batch, get_multicond_prompt_list
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

TOKENS = re.compile(r"[\[\]():|]|(?:[^\\\[\]():|]|\\.)++")
WHEN = re.compile(r"\s*([+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]+)?)\s*")
WEIGHT = re.compile(r"\s*([-+]?(?:\d++\.?|\d*+\.\d+))\s*")

MOST_PROMPTS_JOINED = 16  # by AND: each is a row of the U-Net's batch
MOST_READ = 5_000_000  # signs and texts of a prompt times evaluations

Node = Union[str, "Edit", "Turns", Sequence["Node"]]


@dataclass(frozen=True)
class Edit:
    """`before` up to the evaluation `when`, then `after`."""

    before: Sequence[Node]
    after: Sequence[Node]
    when: str

    def at(self, step: int, evaluations: int) -> Sequence[Node]:
        end = float(self.when) * (evaluations if "." in self.when else 1)
        return self.before if step <= end else self.after


@dataclass(frozen=True)
class Turns:
    """One of `texts` after the other."""

    texts: Sequence[Sequence[Node]]

    def at(self, step: int, evaluations: int) -> Sequence[Node]:
        return self.texts[(step - 1) % len(self.texts)]


def timeline(text: str, evaluations: int) -> list[str]:
    """The text in force at each of the evaluations.

    Raises:
      ValueError: a text that changes is too long for so many evaluations, each of which reads it once.
    """
    nodes = read(text)
    changes = nodes != [text]
    if changes and (signs := len(TOKENS.findall(text))) * evaluations > MOST_READ:
        raise ValueError(
            f"the prompt changes along {evaluations} evaluations and has {signs:,} signs and texts; with so many "
            f"evaluations the limit is {MOST_READ // evaluations:,}: shorten it"
        )
    return [text_at(nodes, max(number, 1), evaluations) for number in range(evaluations)]


def text_at(nodes: Sequence[Node], step: int, evaluations: int) -> str:
    """The text that is in force at `step`, which counts from 1."""
    found: list[str] = []
    within = [iter(nodes)]
    while within:
        node = next(within[-1], None)
        if node is None:
            within.pop()
        elif isinstance(node, str):
            found.append(node)
        else:
            within.append(iter(node.at(step, evaluations) if isinstance(node, Edit | Turns) else node))
    return "".join(found)


@dataclass
class _Bracket:
    """An open bracket: the cells between its colons or bars so far."""

    sign: str
    cells: list[list[Node]] = field(default_factory=lambda: [[]])
    bars: list[str] = field(default_factory=list)

    def closed(self, sign: str) -> Node | None:
        """What it is once closed; None where it fits nowhere in the grammar."""
        if self.sign + sign == "()" and self.bars in ([], [":"]):
            return self.nodes(sign)
        if self.sign + sign != "[]":
            return None
        if not self.bars:
            return self.nodes(sign)
        if set(self.bars) == {"|"}:
            return Turns(self.cells)
        *cells, last = self.cells
        when = WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if when is None or self.bars not in ([":"], [":", ":"]):
            return None
        return Edit(cells[0] if len(cells) == 2 else [], cells[-1], when[1])

    def nodes(self, end: str = "") -> list[Node]:
        """It as text: what stands between the signs may still be edits."""
        between = [node for bar, cell in zip(self.bars, self.cells[1:], strict=True) for node in (bar, cell)]
        return [self.sign, self.cells[0], *between, end]


def read(text: str) -> Sequence[Node]:
    """The nodes of a prompt: one text where nothing in it changes."""
    tokens = TOKENS.findall(text)
    if sum(map(len, tokens)) != len(text):
        return [text]
    top: list[Node] = []
    opened: list[_Bracket] = []
    changes = False
    for token in tokens:
        if token in ("(", "["):
            opened.append(_Bracket(token))
        elif token in (":", "|") and opened:
            opened[-1].bars.append(token)
            opened[-1].cells.append([])
        elif token in (")", "]") and opened and (node := opened[-1].closed(token)) is not None:
            opened.pop()
            changes = changes or isinstance(node, Edit | Turns)
            (opened[-1].cells[-1] if opened else top).append(node)
        elif token in (")", "]", "|"):  # fits nowhere, and so does every bracket that is open around it
            if token == "|" or _bars_in(opened):
                return [text]
            top += [*(bracket.nodes() for bracket in opened), token]
            opened.clear()
        else:
            (opened[-1].cells[-1] if opened else top).append(token)
    if _bars_in(opened) or not changes:
        return [text]
    return [*top, *(bracket.nodes() for bracket in opened)]


def _bars_in(opened: Sequence[_Bracket]) -> bool:
    return any("|" in bracket.bars for bracket in opened)


def parts(text: str) -> list[tuple[str, float]]:
    """The prompts that AND joins, each with its weight: a number after its last colon, else 1.

    A prompt without AND is one part, and may have a weight too.

    Raises:
      ValueError: more than `MOST_PROMPTS_JOINED` parts; the U-Net looks at each of them in every step.
    """
    found = re.split(r"\bAND\b", text)
    if len(found) > MOST_PROMPTS_JOINED:
        raise ValueError(
            f"the prompt joins {len(found):,} prompts by AND, and the limit is {MOST_PROMPTS_JOINED}: write some of "
            "them as one, or with a comma"
        )
    return [_part(part) for part in found]


def _part(text: str) -> tuple[str, float]:
    words, colon, number = text.rpartition(":")
    weight = WEIGHT.fullmatch(number)
    return (words.rstrip(), float(weight[1])) if colon and weight else (text.rstrip(), 1.0)
