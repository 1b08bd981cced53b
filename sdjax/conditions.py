"""From prompts to what a U-Net is told: texts along a run, their hidden states, SDXL's sizes.

A picture is pulled by its prompt (in A1111's style by several, joined by AND) and away from its negative prompt. Each
of these is a `Pull`, whose text may change from one network evaluation to the next (`[cat:dog:0.5]`): the run then
goes in pieces of rows, and every piece has contexts of its own in the same compiled program.

What of the text encoders a U-Net attends to is a matter of the family (Podell et al. 2023, arXiv:2307.01952, section
2.1, for SDXL):

    SD 1.x, 2.x    the last hidden states after the final norm
    SDXL           the last but one before it, of every encoder side by side; and the last encoder's pooled state
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import groupby

import numpy as np

from sdjax.config import ClipTextConfig
from sdjax.diffusion.plan import Plan
from sdjax.diffusion.run import Run
from sdjax.notice import notice
from sdjax.short import short
from sdjax.text import emphasis, prompts
from sdjax.text.grammar import Grammar
from sdjax.text.tokens import Tokenizer

Texts = Mapping[str, str]  # by text encoder
# component, ids `l`, depth -> (hidden states `l d`, pooled `d`)
EncodeRow = Callable[[str, Sequence[int], int], tuple[np.ndarray, np.ndarray]]

CONVENTIONS = ("diffusers", "a1111", "comfy")
# A1111 counts two evaluations for each step of these when it reads `[cat:dog:0.5]`, even where the last has one
# (`second_order` in modules/sd_samplers_kdiffusion.py).
TWO_A_STEP = ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart")


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder, the tokenizer that goes with it, and the sentences that it knows where they are few."""

    config: ClipTextConfig
    tokenizer: Tokenizer
    grammar: Grammar | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ClipSkip:
    """Which layer's hidden states are taken, as one of the peers counts; as text `convention:count`.

    Attributes:
      convention: "diffusers": count layers are left out beyond the family's usual ones, of the prompt alone; the
        negative prompt keeps all (pipeline_stable_diffusion.py, encode_prompt).
        "a1111": the count-th layer from the end, 1 being the last, of both; OpenAI's CLIP in SD 1.x alone, other
        encoders stay as they are (modules/sd_hijack_clip.py).
        "comfy": the layer -count as its CLIPSetLastLayer numbers them, of both, in every family (comfy/sd1_clip.py).
    """

    convention: str = "diffusers"
    count: int = 0

    @classmethod
    def read(cls, value: "int | str | ClipSkip | None", style: str) -> "ClipSkip":
        """From its text; a number alone counts as the prompts' style does, plain as diffusers. Raises ValueError."""
        if isinstance(value, cls):
            return value
        if value is None:
            return cls()
        own = style if style in CONVENTIONS else "diffusers"
        convention, _, count = value.rpartition(":") if isinstance(value, str) else (own, ":", str(value))
        convention = convention or own
        least = 0 if convention == "diffusers" else 1
        if convention not in CONVENTIONS or isinstance(value, bool) or not count.lstrip("-").isdecimal():
            raise ValueError(f"clip_skip {short(value)} cannot be understood; write diffusers:1, a1111:2 or comfy:-2")
        number = -int(count) if convention == "comfy" else int(count)
        if number < least:
            first = "comfy:-1" if convention == "comfy" else f"{convention}:{least}"
            raise ValueError(f"clip_skip {value!r}: {convention} counts from {first}, which leaves nothing out")
        return cls(convention, number)

    def __str__(self) -> str:
        return f"{self.convention}:{'-' if self.convention == 'comfy' else ''}{self.count}"

    def depth(self, config: ClipTextConfig, xl: bool, negative: bool) -> int:
        """How far from the end the layer lies, 1 the last. Raises ValueError where there is no such layer."""
        usual = 2 if xl else 1
        depth = usual
        if self.convention == "diffusers" and not negative:
            depth = usual + self.count
        if self.convention == "a1111" and not xl and config.hidden_act == "quick_gelu":
            depth = self.count
        if self.convention == "comfy":
            depth = self.count
        if depth > config.num_hidden_layers + 1:
            raise ValueError(f"clip_skip {self}: this text encoder has {config.num_hidden_layers} layers")
        return depth


@dataclass(frozen=True)
class Pull:
    """One pull on a picture.

    Attributes:
      texts: the text for each encoder, at each of the n network evaluations.
      share: how much of the guidance is this one's. negative: whether it pulls away.
      zero: SDXL's way to say nothing, all embeddings zero.
      blank: whether the picture that the network is shown is left out too.
      region: where it counts: 0 is what no region covers, or everything where there are none.
    """

    texts: tuple[Texts, ...]
    share: float = 1.0
    negative: bool = False
    zero: bool = False
    blank: bool = False
    region: int = 0


def pulls(given: Texts, run: Run, style: str) -> list[Pull]:
    """The pulls of a prompt, which may be another one for each encoder, along a run. Raises ValueError."""
    if not given:  # a model without a text encoder
        return [Pull(_along(given, run, style))]
    split = {name: prompts.parts(text, style) for name, text in given.items()}
    counts = {len(one) for one in split.values()}
    if len(counts) > 1:
        raise ValueError("prompt and prompt_2 have another number of parts joined by AND; they go together in pairs")
    made = []
    for i in range(counts.pop()):
        along = _along({name: one[i][0] for name, one in split.items()}, run, style)
        made.append(Pull(along, next(iter(split.values()))[i][1]))
    return made


def negative_pull(given: Texts, run: Run, style: str, zero: bool) -> Pull:
    """The part that a picture is pulled away from; AND joins nothing here, as in A1111."""
    return Pull(_along(given, run, style), negative=True, zero=zero)


def _along(given: Texts, run: Run, style: str) -> tuple[Texts, ...]:
    """The texts in force at each of the plan's evaluations; edits count those of the whole run."""
    whole = run.whole
    counted = max(whole.evaluations, 2 * whole.steps if whole.sampler in TWO_A_STEP else 0)
    lines = {name: prompts.timeline(text, counted, style) for name, text in given.items()}
    mine = [min(run.before + k, counted - 1) for k in range(max(run.plan.evaluations, 1))]
    return tuple({name: line[k] for name, line in lines.items()} for k in mine)


def pieces(
    pictures: Sequence[Sequence[Pull]], plans: Sequence[Plan], rows: int
) -> Iterator[tuple[int, int, list[list[Texts]]]]:
    """The runs of table rows in which no picture's texts change: (start, stop, texts of each pull by picture)."""
    number = [np.clip(np.cumsum(np.append(plan.evaluate, np.zeros(rows))[:rows]) - 1, 0, None) for plan in plans]

    def texts(row: int) -> list[list[Texts]]:
        return [[pull.texts[int(at[row])] for pull in own] for own, at in zip(pictures, number, strict=True)]

    for told, group in groupby(range(rows), key=texts):
        listed = list(group)
        yield listed[0], listed[-1] + 1, told


@dataclass(frozen=True, eq=False)
class Encoding:
    """How texts are encoded: in which style, by which encoders, to which depth.

    Attributes:
      encoders: by component. encode: runs one of them on one row of ids.
      xl: whether states are SDXL's. style: of the prompts. clip_skip: see `ClipSkip`.
    """

    encoders: Mapping[str, TextEncoder]
    encode: EncodeRow
    xl: bool
    style: str
    clip_skip: ClipSkip

    def __call__(self, texts: Texts, negative: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The text's hidden states `c l e` in c pieces, and its pooled state `d`: the first piece's, as peers do.

        Encoders that need fewer pieces than another get empty ones, as in A1111 and ComfyUI.
        """
        made = {name: self._one(name, texts[name], negative) for name in self.encoders}
        most = max(len(states) for states, _ in made.values())
        side_by_side = []
        for name, (states, _) in made.items():
            empty = [self._empty(name, negative)[0]] * (most - len(states))
            side_by_side.append(np.stack([*states, *empty]))
        return np.concatenate(side_by_side, -1), made[list(made)[-1]][1]

    def _one(self, name: str, text: str, negative: bool) -> tuple[list[np.ndarray], np.ndarray]:
        depth = self._depth(name, negative)
        rows = self.rows(name, text)
        encoded = [self.encode(name, row.ids, depth) for row in rows]
        states = []
        for row, (raw, _) in zip(rows, encoded, strict=True):
            weights = np.asarray(row.weights, np.float32)
            plain = (weights == 1).all()
            states.append(raw if plain else prompts.weigh(raw, weights, self._empty(name, negative)[0], self.style))
        return states, encoded[0][1]

    @cached_property
    def rows(self) -> Callable[[str, str], list[prompts.Chunk]]:
        """The rows of an encoder's text: made once, since a text that is cut gives a warning."""
        return cache(lambda name, text: prompts.chunks(text, self.encoders[name].tokenizer, self.style))

    def _empty(self, name: str, negative: bool) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows(name, "")[0]
        return self.encode(name, row.ids, self._depth(name, negative))

    def _depth(self, name: str, negative: bool) -> int:
        return self.clip_skip.depth(self.encoders[name].config, self.xl, negative)


def check(pulls: Sequence[Pull], encoders: Mapping[str, TextEncoder], style: str) -> None:
    """Raises ValueError for a text that takes too many rows, or whose weights are no numbers to multiply by."""
    if not np.isfinite([pull.share for pull in pulls]).all():
        raise ValueError("the weight of a prompt joined by AND is infinite or no number")
    for name, encoder in encoders.items():
        for text in {texts[name] for pull in pulls for texts in pull.texts}:
            rows = prompts.chunks(text, encoder.tokenizer, style)
            if not np.isfinite([weight for row in rows for weight in row.weights]).all():
                raise ValueError(f"the prompt's weights are infinite or no numbers: {text[:60]!r}")


def warn_of_words(name: str, texts: Iterable[Texts], encoders: Mapping[str, TextEncoder], style: str) -> None:
    """Warns, once, where some of the texts are none that the model called `name` was trained on."""
    told = list(texts)
    for component, encoder in encoders.items():
        if encoder.grammar is None:
            continue
        said = dict.fromkeys(one[component] for one in told)
        complaint = encoder.grammar.complaint(piece for text in said for piece in sentences(text, style))
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
