"""From prompts to branches: what the network is asked beside each other for one picture, and with which texts.

Guidance evaluates the network several times for a picture: with its negative prompt, with its prompt (in A1111's style
with several, joined by AND), with each region's. Each of these is a `Branch`, whose text may change from one evaluation
to the next (`[cat:dog:0.5]`): the run then goes in pieces of rows, and every piece has contexts of its own in the same
compiled program. How texts are encoded is in `model.text_encoder`, how the answers are combined in `diffusion.guiders`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from sdjax.core.notice import notice
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.progress import Run
from sdjax.model.text_encoder import NewVectors, TextEncoder, Texts, counts_of
from sdjax.text import emphasis, prompts, words

# A1111 counts two evaluations for each step of these when it reads `[cat:dog:0.5]`, even where the last has one
# (`second_order` in modules/sd_samplers_kdiffusion.py).
TWO_A_STEP = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart")


@dataclass(frozen=True)
class Branch:
    """What the network is asked for one picture, beside the other branches of it.

    Attributes:
      texts: the text for each encoder, at each of the n network evaluations.
      weight: w of equation 4 in `diffusion.guidance`, where a prompt has several. negative: whether guidance leads away
        from its answer.
      zero: SDXL's way to say nothing, all embeddings zero.
      blank: whether the picture that the network is shown is left out too.
      region: where it counts: 0 is what no region covers, or everything where there are none.
    """

    texts: tuple[Texts, ...]
    weight: float = 1.0
    negative: bool = False
    zero: bool = False
    blank: bool = False
    region: int = 0


def branches(given: Texts, run: Run, style: str) -> list[Branch]:
    """The branches of a prompt, which may be another one for each encoder, along a run. Raises ValueError."""
    if not given:  # a model without a text encoder
        return [Branch(_along(given, run, style))]
    split = {name: prompts.parts(text, style) for name, text in given.items()}
    counts = {len(one) for one in split.values()}
    if len(counts) > 1:
        raise ValueError("prompt and prompt_2 have another number of parts joined by AND; they go together in pairs")
    made = []
    for i in range(counts.pop()):
        along = _along({name: one[i][0] for name, one in split.items()}, run, style)
        made.append(Branch(along, next(iter(split.values()))[i][1]))
    return made


def negative_branch(given: Texts, run: Run, style: str, zero: bool) -> Branch:
    """The part that a picture is pulled away from; AND joins nothing here, as in A1111."""
    return Branch(_along(given, run, style), negative=True, zero=zero)


def _along(given: Texts, run: Run, style: str) -> tuple[Texts, ...]:
    """The texts in force at each of the plan's evaluations; edits count those of the whole run."""
    whole = run.whole
    counted = max(whole.evaluations, 2 * whole.steps if whole.sampler in TWO_A_STEP else 0)
    lines = {name: prompts.timeline(text, counted, style) for name, text in given.items()}
    mine = [min(run.before + k, counted - 1) for k in range(max(run.plan.evaluations, 1))]
    return tuple({name: line[k] for name, line in lines.items()} for k in mine)


def pieces(
    pictures: Sequence[Sequence[Branch]], plans: Sequence[Plan], rows: int, worn: Sequence[int] | None = None
) -> Iterator[tuple[int, int, list[list[Texts]]]]:
    """The runs of table rows in which no picture's texts change: (start, stop, texts of each branch by picture).

    worn: a number for each row; the runs end where it changes, too.
    """
    number = [np.clip(np.cumsum(np.append(plan.evaluate, np.zeros(rows))[:rows]) - 1, 0, None) for plan in plans]

    def texts(row: int) -> list[list[Texts]]:
        return [[branch.texts[int(at[row])] for branch in own] for own, at in zip(pictures, number, strict=True)]

    def told(row: int) -> tuple[list[list[Texts]], int]:
        return texts(row), 0 if worn is None else worn[row]

    for (here, _), group in groupby(range(rows), key=told):
        listed = list(group)
        yield listed[0], listed[-1] + 1, here


def check(
    branches: Sequence[Branch], encoders: Mapping[str, TextEncoder], style: str, new: NewVectors | None = None
) -> None:
    """Raises ValueError for a text that takes too many rows, or whose weights are no numbers to multiply by."""
    if not np.isfinite([branch.weight for branch in branches]).all():
        raise ValueError("the weight of a prompt joined by AND is infinite or no number")
    for name, encoder in encoders.items():
        for text in {texts[name] for branch in branches for texts in branch.texts}:
            rows = prompts.chunks(text, encoder.tokenizer, style, counts_of(new or {}).get(name, {}))
            if not np.isfinite([weight for row in rows for weight in row.weights]).all():
                raise ValueError(f"the prompt's weights are infinite or no numbers: {text[:60]!r}")


def warn_of_words(
    name: str,
    texts: Iterable[Texts],
    encoders: Mapping[str, TextEncoder],
    style: str,
    new: NewVectors | None = None,
    taught: frozenset[str] = frozenset(),
) -> None:
    """Warns, once, where some of the texts are none that the model called `name` was trained on.

    taught: words that adapters teach it. What lies around a new word, and a text with a word that was taught, is judged
    by its words alone: of which kind those are, no grammar knows.
    """
    told = list(texts)
    for component, encoder in encoders.items():
        if encoder.grammar is None:
            continue
        said = dict.fromkeys(one[component] for one in told)
        names = list((new or {}).get(component, ()))
        cut = [words.fragments(piece, names, style) for text in said for piece in sentences(text, style)]
        whole, around = ([own for own in cut if (len(own) > 1) is several] for several in (False, True))
        complaint = encoder.grammar.complaint(sum(whole, []), sum(around, []), taught)
        if complaint:
            notice(f"{name} {complaint}")


def sentences(text: str, style: str) -> list[str]:
    """The words of a text without the style's signs; several where BREAK parts them."""
    if style == "plain":
        return [text]
    rows: list[list[str]] = [[]]
    for segment in emphasis.a1111(text) if style == "a1111" else emphasis.comfy(text):
        if style == "a1111" and segment == emphasis.BREAK:
            rows.append([])
        else:
            rows[-1].append(segment[0])
    return [" ".join(row) for row in rows]


def in_pieces(encoded: Sequence[np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states `c l e` of b texts, c their own, as one array `b most l e` and the counts int32 `b`."""
    padded = np.zeros((len(encoded), most, *encoded[0].shape[1:]), np.float32)
    for row, states in zip(padded, encoded, strict=True):
        row[: len(states)] = states
    return padded, np.array([len(states) for states in encoded], np.int32)
