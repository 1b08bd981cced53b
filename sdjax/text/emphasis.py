"""Emphasis: the brackets of a prompt, read into texts with weights as two widely used programs read them.

AUTOMATIC1111's web UI [1]: every pair of brackets multiplies the weight of what it holds,

    (1)   (w) 1.1      [w] 1 / 1.1      (w:a) a      a backslash before a bracket: the bracket itself

brackets left open reach to the end, and BREAK between words starts a new chunk. ComfyUI [2]: round brackets only,

    (2)   (w) 1.1 times the weight around it         (w:a) a, whatever the weight around it

so that ((w:1.3)) is 1.43 in the one and 1.3 in the other. Neither refuses a text: what is no syntax is words. Nothing
here recurses or reads a character once per level, so brackets may be nested as deeply as one likes.

[1] https://github.com/AUTOMATIC1111/stable-diffusion-webui modules/prompt_parser.py, parse_prompt_attention
[2] https://github.com/Comfy-Org/ComfyUI comfy/sd1_clip.py, token_weights
"""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby

import numpy as np

Segment = tuple[str, float]

STEP = 1.1
BREAK: Segment = ("BREAK", -1.0)  # how A1111 marks a new chunk among the segments
# The number is one that float() reads: A1111 also matches 1.2.3 and then fails on it; here it is words.
SIGNS = re.compile(r"\\[()\[\]\\]?|[(\[)\]]|:\s*([+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*\)|[^\\()\[\]:]+|:")


def a1111(text: str) -> list[Segment]:
    """The texts and weights of equation (1). Neighbours of one weight are one segment, to be tokenized as one.

    A BREAK inside brackets is weighed as words are, and then no longer marks a new chunk: so it is in A1111.
    """
    reader = _Reader()
    for sign in SIGNS.finditer(text):
        words, factor = sign[0], sign[1]
        if words[0] == "\\":
            reader.add(words[1:])  # a lone backslash vanishes
        elif words in reader.open:
            reader.open[words].append(len(reader.texts))
        elif words[-1] == ")" and reader.open["("]:
            reader.weigh(reader.open["("].pop(), float(factor or STEP))
        elif words == "]" and reader.open["["]:
            reader.weigh(reader.open["["].pop(), 1 / STEP)
        else:
            reader.add_words(words)
    return reader.segments()


class _Reader:
    """What of a text is read: segments, brackets still open, and products still to be taken, in A1111's order.

    Equal weights join segments and floating-point products depend on their order, so the order must be kept.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.products: list[tuple[int, int, float]] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str, weight: float = 1.0) -> None:
        self.texts.append(text)
        self.weights.append(weight)

    def add_words(self, words: str) -> None:
        """Words, with any BREAK and the white space around it as a mark."""
        first, *others = re.split(r"\bBREAK\b", words)
        self.add(first.rstrip() if others else first)
        for i, other in enumerate(others, start=1):
            self.add(*BREAK)
            self.add(other.strip() if i < len(others) else other.lstrip())

    def weigh(self, start: int, factor: float) -> None:
        self.products.append((start, len(self.texts), factor))

    def segments(self) -> list[Segment]:
        for bracket, factor in (("(", STEP), ("[", 1 / STEP)):
            for start in self.open[bracket]:
                self.weigh(start, factor)
        weights = np.array(self.weights, np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for start, stop, factor in self.products:
                weights[start:stop] *= factor
        runs = groupby(zip(self.texts, weights.tolist(), strict=True), key=lambda segment: segment[1])
        return [("".join(text for text, _ in run), weight) for weight, run in runs] or [("", 1.0)]


ESCAPES = {"\\)": "\0\1", "\\(": "\0\2"}


def comfy(text: str) -> list[Segment]:
    """The texts and weights of equation (2), as ComfyUI keeps them apart: each becomes tokens by itself."""
    for sign, stand_in in ESCAPES.items():
        text = text.replace(sign, stand_in)
    closing = _closing(text)
    segments: list[Segment] = []
    inside = [(1.0, _pieces(text, 0, len(text), closing))]  # weight and what is left of every bracket being read
    while inside:
        weight, pieces = inside[-1]
        start, stop = next(pieces, (0, 0))
        if start == stop:
            inside.pop()
        elif stop - start > 1 and text[start] == "(" and text[stop - 1] == ")":
            start, stop, inner = _group(text, start + 1, stop - 1, weight)
            inside.append((inner, _pieces(text, start, stop, closing)))
        else:
            segments.append((_unescaped(text[start:stop]), weight))
    return segments


def _closing(text: str) -> dict[int, int]:
    """Where each round bracket that is closed is closed."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for bracket in re.finditer(r"[()]", text):
        if bracket[0] == "(":
            opened.append(bracket.start())
        elif opened:
            found[opened.pop()] = bracket.start()
    return found


def _pieces(text: str, start: int, stop: int, closing: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Cut text[start:stop] into its outermost brackets and what lies between them.

    A closing bracket too many makes one opening bracket after it words; one that stays open takes all that follows.
    """
    begin = at = start
    surplus = 0
    while at < stop:
        if text[at] == "(" and surplus == 0:
            if begin < at:
                yield begin, at
            begin, at = at, min(closing.get(at, stop) + 1, stop)
            yield begin, at
            begin = at
        else:
            surplus += (text[at] == ")") - (text[at] == "(")
            at += 1
    if begin < stop:
        yield begin, stop


def _group(text: str, start: int, stop: int, around: float) -> tuple[int, int, float]:
    """The inside of a bracket without its number, and its weight."""
    colon = text.rfind(":", start, stop)
    if colon > start and text.find(")", colon, stop) < 0:
        try:
            return start, colon, float(text[colon + 1 : stop])
        except ValueError:
            pass
    return start, stop, around * STEP


def _unescaped(text: str) -> str:
    for sign, stand_in in ESCAPES.items():
        text = text.replace(stand_in, sign[1])
    return text
