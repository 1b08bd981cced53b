"""Prompts: from a text to what a text encoder is asked, and what its states are weighed with, in three styles.

    "plain"   the text as it stands in one row of l = 77 ids, what does not fit cut off: diffusers
    "a1111"   emphasis, BREAK, rows as many as it takes, editing, alternation, AND: AUTOMATIC1111's web UI and Forge;
              each piece of text is cleaned as their tokenizers do (`cleaning`)
    "comfy"   emphasis, rows as many as it takes: ComfyUI

A long prompt becomes several rows of its own BOS, EOS and padding. Each is encoded by itself and their states are laid
end to end, `77 c d` for c rows; the pooled state, where a U-Net asks for one, is the first row's in both programs.
`emphasis` holds the two ways to read weights, `editing` what changes along a run, `words` how new words are found.

Sources: AUTOMATIC1111/stable-diffusion-webui modules/sd_hijack_clip.py and modules/sd_emphasis.py (Forge:
backend/text_processing/classic_engine.py); Comfy-Org/ComfyUI comfy/sd1_clip.py.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.core.errors import closest
from sdjax.core.short import short
from sdjax.text import cleaning, editing, emphasis, words
from sdjax.text.tokens import Tokenizer
from sdjax.text.words import Counts, Vector

STYLES = ("plain", "a1111", "comfy")
MAX_CHUNKS = 16
COMMA_BACKTRACK = 20  # A1111 ends a row at a comma if one is among its last 20 tokens
WORD = 8  # ComfyUI moves a text of fewer tokens than this to the next row whole

Token = tuple[int | Vector, float]  # id, or a new word's vector, and weight


@dataclass(frozen=True)
class Chunk:
    """One row for a text encoder: `ids` and `weights`, both `l`, with BOS, EOS and padding (of weight 1).

    vectors: those of new words, each with its place in the row, where the id counts for nothing.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    vectors: tuple[tuple[int, Vector], ...] = ()


def chunks(text: str, tokenizer: Tokenizer, style: str, new: Counts = words.NONE) -> list[Chunk]:
    """The rows that `text` becomes, at least one.

    new: how many vectors each new word has, those that `words.check` let pass.

    Errors of syntax are read as the style's program reads them. Raises ValueError for an unknown style, for a text
    of more than MAX_CHUNKS rows, and where ComfyUI's embedding:name is none of the new words. A plain text that is cut
    gives the warning of `Tokenizer.tokens`.
    """
    check_style(style)
    rows = ROWS[style](text, tokenizer, new)
    if len(rows) > MAX_CHUNKS:
        room = tokenizer.max_length - 2
        raise ValueError(
            f"the prompt has {sum(map(len, rows))} tokens and takes {len(rows)} chunks of {room}; the limit is "
            f"{MAX_CHUNKS} chunks, {MAX_CHUNKS * room} tokens: shorten it"
        )
    return [_chunk(row, tokenizer, style) for row in rows]


def weigh(states: np.ndarray, weights: Sequence[float] | np.ndarray, empty: np.ndarray, style: str) -> np.ndarray:
    """The hidden states z of one chunk, weighed: float32 `l d`, from states `l d` and weights w `l`.

    With e the states of the empty prompt's row (`chunks("", ...)[0]`, from the same encoder and layer),

        plain   z
        a1111   w z, then scaled so that the mean over all tokens and features is what it was ("Original" emphasis)
        comfy   (z - e) w + e where w is not 1

    Each text encoder's states are weighed by themselves, before SDXL's two are laid side by side. The pooled state is
    not weighed. A1111 encodes all texts of an edited prompt as one batch and takes the mean over it: states `n l d`
    and weights `n l` do the same. Raises ValueError for an unknown style, and for weights that are not one a token.
    """
    check_style(style)
    z, w = np.asarray(states, np.float32), np.asarray(weights, np.float32)[..., None]
    if w.shape[:-1] != z.shape[:-1]:
        raise ValueError(f"weights of shape {w.shape[:-1]} do not fit states of shape {z.shape}: one weight a token")
    if style == "a1111":
        weighed = z * w
        mean = weighed.mean(dtype=np.float64)
        return weighed * np.float32(z.mean(dtype=np.float64) / mean if mean else 1)
    if style == "comfy":
        return np.where(w == 1, z, (z - empty) * w + empty).astype(np.float32)
    return z


def timeline(text: str, evaluations: int, style: str) -> list[str]:
    """The text in force at each of `evaluations` network evaluations; in other styles than a1111 always `text`.

    A1111 reckons with 2 evaluations a step for its second-order samplers (Heun, DPM2, DPM2 a, DPM++ 2S a, DPM++ SDE,
    Restart) though the last step often makes one, and both counts and fractions in a prompt are of that number: for
    the same edits take the start of `timeline(text, 2 * steps, "a1111")`. Raises ValueError for an unknown style, a
    negative number and a text of too many changes.
    """
    check_style(style)
    if evaluations < 0:
        raise ValueError(f"evaluations must not be negative, got {evaluations}")
    return editing.timeline(text, evaluations) if style == "a1111" else [text] * evaluations


def parts(text: str, style: str) -> list[tuple[str, float]]:
    """The prompts joined by AND, with their weights: as many pulls on the picture, each edited and weighed by itself.

    In A1111's style "a cat AND a dog :1.2" is [("a cat", 1.0), (" a dog", 1.2)]; a weight may also stand without AND.
    Negative prompts are not cut there: do not ask for their parts. In other styles: `text` with the weight 1. Raises
    ValueError for an unknown style, and for more than `MOST_PROMPTS_JOINED` parts.
    """
    check_style(style)
    return editing.parts(text) if style == "a1111" else [(text, 1.0)]


def check_style(style: str) -> None:
    """Raises ValueError for an unknown style, naming the nearest."""
    if style not in STYLES:
        near = closest(str(style), STYLES, cutoff=0.0)[0]
        raise ValueError(f"unknown prompt style {short(style)}; the nearest is {near!r}; known: {', '.join(STYLES)}")


def _plain_rows(text: str, tokenizer: Tokenizer, new: Counts) -> list[list[Token]]:
    """One row. The text between new words is spelled by itself, as diffusers' tokenizers do it."""
    spelled: list[tuple[int | Vector, int]] = []
    start = 0
    for word in words.pattern(new).finditer(text) if new else ():
        spelled += [(one, start + at) for one, at in tokenizer.spelled(text[start : word.start()])]
        spelled += [(one, word.start()) for one in words.vectors(word[0], new)]
        start = word.end()
    spelled += [(one, start + at) for one, at in tokenizer.spelled(text[start:])]
    return [[(one, 1.0) for one in tokenizer.fitting(text, spelled)]]


def _a1111_rows(text: str, tokenizer: Tokenizer, new: Counts) -> list[list[Token]]:
    """Rows filled to the last place, or back to a comma among the last COMMA_BACKTRACK tokens.

    A new word is never torn. Where A1111 moves one to the next row behind a comma, it leaves the vectors in the row
    before, in its padding; here they go along.
    """
    room, comma, known = tokenizer.max_length - 2, tokenizer.pieces(","), words.by_id(new, tokenizer)
    rows: list[list[Token]] = [[]]
    last_comma = -1
    for segment in emphasis.a1111(text):
        if segment == emphasis.BREAK:
            rows.append([])
            last_comma = -1
            continue
        ids = tokenizer.pieces(cleaning.a1111(segment[0], tokenizer.open_clip))
        for found in words.find(ids, known):
            if len(rows[-1]) == room:
                near = [found] != comma and last_comma >= 0 and room - last_comma <= COMMA_BACKTRACK
                keep = last_comma + 1 if near else room
                rows[-1:] = [rows[-1][:keep], rows[-1][keep:]]
                last_comma = -1
            elif [found] == comma:
                last_comma = len(rows[-1])
            whole = words.vectors(found, new) if isinstance(found, str) else [found]
            if len(rows[-1]) + len(whole) > room:
                rows.append([])
                last_comma = -1
            rows[-1] += [(one, segment[1]) for one in whole]
    return rows if rows[-1] or len(rows) == 1 else rows[:-1]


def _comfy_rows(text: str, tokenizer: Tokenizer, new: Counts) -> list[list[Token]]:
    """Rows filled by one text of equal weight, or one new word, after the other; long ones are cut where a row ends."""
    room = tokenizer.max_length - 2
    rows: list[list[Token]] = [[]]
    for group in _comfy_groups(text, tokenizer, new):
        whole = len(group) < min(WORD, room + 1)
        start = 0
        while len(rows[-1]) + len(group) - start > room:
            free = 0 if whole else room - len(rows[-1])
            rows[-1] += group[start : start + free]
            start += free
            rows.append([])
        rows[-1] += group[start:]
    return rows


def _comfy_groups(text: str, tokenizer: Tokenizer, new: Counts) -> Iterator[list[Token]]:
    """What ComfyUI keeps together: a text of one weight up to the next mark of a new word, and the word's vectors."""
    for segment, weight in emphasis.comfy(text):
        for said in re.split(rf"(?<=[ \n])(?={words.MARK})", segment):
            word, rest = words.marked(said, new)
            if word is not None:
                yield [(one, weight) for one in words.vectors(word, new)]
            yield [(one, weight) for one in tokenizer.pieces(rest)]


ROWS: dict[str, Callable[[str, Tokenizer, Counts], list[list[Token]]]] = {
    "plain": _plain_rows,
    "a1111": _a1111_rows,
    "comfy": _comfy_rows,
}


def _chunk(row: list[Token], tokenizer: Tokenizer, style: str) -> Chunk:
    """BOS, the row, EOS and padding. A1111 pads from the first EOS on, even one that was typed."""
    stand_in = words.placeholder(tokenizer)
    held = [stand_in if isinstance(token, Vector) else token for token, _ in row]
    ids = [tokenizer.bos, *held, tokenizer.eos]
    if style == "a1111" and tokenizer.open_clip:
        ids = ids[: ids.index(tokenizer.eos) + 1]
    weights = [1.0, *(weight for _, weight in row)]
    length = tokenizer.max_length
    padding = [tokenizer.pad] * (length - len(ids)), [1.0] * (length - len(weights))
    vectors = tuple((place, token) for place, (token, _) in enumerate(row, start=1) if isinstance(token, Vector))
    return Chunk((*ids, *padding[0]), (*weights, *padding[1]), vectors)
