"""What each picture of a request wears: which adapters, how strongly in each part of the model, and where in its run.

An outfit is checked against a model's configs alone: the modules that its adapters name are found in the shapes of its
parameters, before anything is compiled. `adapters.slots` says how the factors of all of them become one program.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.adapters.adapter import Adapter
from sdjax.adapters.blocks import BlockWeights
from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.read import load_adapter
from sdjax.adapters.scales import PARTS, USAGE, Scale
from sdjax.adapters.slots import Factors, Slots, factors_of
from sdjax.adapters.textual_inversion import TextualInversion
from sdjax.core.errors import CheckpointError, shown, unknown
from sdjax.core.notice import notice
from sdjax.core.short import short
from sdjax.diffusion.guidance_schedule import progress
from sdjax.diffusion.progress import Run
from sdjax.model.spec import ModelSpec
from sdjax.nn.worn import Strengths
from sdjax.request.checks import is_list, spread
from sdjax.text.tags import HYPERNET, LORA, Tag
from sdjax.weights.files import read_header

Wearable = Adapter | Hypernetwork
# An adapter in the words of settings: its name, its hash, and its scale where no tag in the prompt says it.
WORDS = re.compile(r"(.+?) \(([0-9a-f]{6,64})\)(?::([^,]+))?(?:, |$)")


@dataclass(frozen=True, eq=False)
class Worn:
    """An adapter, as b pictures wear it.

    Attributes:
      adapter: a LoRA, or a hypernetwork. blocks: a factor for each module, the same for all pictures, or None.
      scales: of each picture; None where it does not wear it.
      ranks: of its factors the first so many count; None is all. by_tag: whether prompts said so.
    """

    adapter: Wearable
    scales: tuple[Scale | None, ...]
    blocks: BlockWeights | None = None
    ranks: int | None = None
    by_tag: bool = False

    def along(self, part: str, within: np.ndarray) -> np.ndarray:
        """m of each picture in a part of the model, float32 [b], where `within` [b] says whether it is worn there."""
        each = [0.0 if one is None else one.parts[part] for one in self.scales]
        return np.where(within, np.array(each, np.float32), np.float32(0))

    def factors(self, spec: ModelSpec) -> dict[str, Factors]:
        """Its factors by component. Raises ValueError where it is for another model, or more than low-rank."""
        assert isinstance(self.adapter, Adapter)
        made: dict[str, Factors] = {}
        blocks = None if self.blocks is None else self.blocks.of(spec.expected_params["unet"])
        for component, deltas in self.adapter.bind(spec.expected_params).items():
            try:
                found = factors_of(deltas, spec.expected_params[component])
            except ValueError as error:
                raise ValueError(f"adapter {self.adapter.name}: {error}") from None
            made[component] = {
                path: (down[: self.ranks], up[:, : self.ranks] * np.float32(blocks(component, path) if blocks else 1))
                for path, (down, up) in found.items()
            }
        return made


@dataclass(frozen=True, eq=False)
class Outfits:
    """What b pictures of a request wear.

    Attributes:
      worn: the adapters. within: bool [adapters, n, b], in which of the n rows of a plan a picture wears one.
      slots: of the low-rank ones, by component, in the order of `worn`.
    """

    worn: tuple[Worn, ...]
    within: np.ndarray
    slots: Mapping[str, Slots]

    @classmethod
    def of(cls, spec: ModelSpec, worn: Sequence[Worn], runs: Sequence[Run]) -> "Outfits":
        """For one model, along these runs. Raises ValueError for an adapter of another, or more than can be worn."""
        low_rank = [one.factors(spec) for one in worn if isinstance(one.adapter, Adapter)]
        for one in worn:
            if isinstance(one.adapter, Hypernetwork):
                one.adapter.check(spec.expected_params["unet"], spec.name)
        slots = {}
        for component in PARTS:
            if made := Slots.of([own.get(component, {}) for own in low_rank]):
                slots[component] = made
        rows = max(run.plan.rows for run in runs)
        within = np.stack([[_within(one.scales[i], run, rows) for i, run in enumerate(runs)] for one in worn])
        return cls(tuple(worn), within.swapaxes(1, 2), slots)

    @property
    def hypernetworks(self) -> tuple[Hypernetwork, ...]:
        """Those among the adapters, in order."""
        return tuple(one.adapter for one in self.worn if isinstance(one.adapter, Hypernetwork))

    @property
    def embeddings(self) -> dict[str, TextualInversion]:
        """The new words that came with the adapters."""
        return {word: one for own in self.worn for word, one in getattr(own.adapter, "embeddings", {}).items()}

    @property
    def taught(self) -> frozenset[str]:
        """Words that the files say they teach a model whose words are few (`sdjax.words`, a list as JSON)."""
        return frozenset(word for own in self.worn for word in _taught(own.adapter.metadata.get("sdjax.words")))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal adapters, however strongly they are worn; holds them, so that none is taken for another."""
        return tuple((one.adapter, str(one.blocks), one.ranks) for one in self.worn)

    def strengths(self, component: str, row: int) -> Strengths:
        """How strongly each of b pictures wears what stands beside a network's kernels, in a row of the plan."""
        scales = np.stack([one.along(component, self.within[i, row]) for i, one in enumerate(self.worn)], axis=-1)
        low_rank = np.array([isinstance(one.adapter, Adapter) for one in self.worn])
        slots = self.slots.get(component)
        ranks = None if slots is None else slots.strengths(scales[:, low_rank])
        nets = scales[:, ~low_rank] if self.hypernetworks and component == "unet" else None
        return Strengths(ranks, nets)

    @cached_property
    def changes(self) -> list[int]:
        """A number for each of the n rows that is another wherever a picture wears something else."""
        flat = self.within.swapaxes(0, 1).reshape(self.within.shape[1], -1)
        return [0, *np.cumsum((flat[1:] != flat[:-1]).any(axis=1)).tolist()]

    def said(self, i: int) -> str | None:
        """What picture i wears, in words, as its settings have it; None where it wears nothing.

        How strongly stands there for what was an argument; what the prompt says is not said twice.
        """
        own = [(one, one.scales[i]) for one in self.worn]
        told = [
            f"{one.adapter.name} ({one.adapter.short_hash}){'' if one.by_tag else f':{scale}'}"
            for one, scale in own
            if scale is not None
        ]
        return ", ".join(told) or None


def _taught(listed: str | None) -> list[str]:
    """The words of a list as JSON; none of what is no such list, for it is somebody's file."""
    try:
        found = json.loads(listed or "[]")
    except (ValueError, RecursionError):
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def _within(scale: Scale | None, run: Run, rows: int) -> np.ndarray:
    """In which of so many rows of a plan a picture wears an adapter, bool: by progress, as guidance intervals count."""
    if scale is None or (scale.start, scale.end) == (0.0, 1.0):
        return np.full(rows, scale is not None)
    along = progress(run.plan, run.whole)
    inside = (scale.start <= along) & (along <= scale.end)
    # What lies between two evaluations belongs to the one before, and starts no piece of the run of its own.
    last = np.maximum.accumulate(np.where(run.plan.evaluate[: len(inside)], np.arange(len(inside)), 0))
    return np.pad(inside[last], (0, rows - len(inside)), mode="edge")


# ---------------------------------------------------------------------- what was given


def pairs(value: Any) -> list[tuple[Any, Any]]:
    """(adapter or path, its scale as given) of `adapters=[..]`; one alone counts fully. Raises ValueError."""
    if value is None:
        return []
    if isinstance(value, Adapter | Hypernetwork | str | os.PathLike) or _is_pair(value):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"adapters must be a list of (adapter, scale), or a mapping by name, not {short(value)}")
    return [one if _is_pair(one) else (one, 1.0) for one in value]


def opened_pairs(value: Any) -> list[tuple[Wearable, Any]]:
    """`pairs` with every adapter read; raises ValueError for one that cannot be worn, and for names without prompts."""
    if isinstance(value, Mapping):
        raise ValueError("adapters by name are for prompts that name them; give a list of (adapter, scale)")
    return [(opened(source), scale) for source, scale in pairs(value)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], tuple | Adapter | Hypernetwork)


def opened(source: Any, name: str | None = None) -> Wearable:
    """An adapter that can be worn, read where it is a path. Raises ValueError, with what else it is."""
    found = load_adapter(source, name) if isinstance(source, str | os.PathLike) else source
    if isinstance(found, Adapter | Hypernetwork):
        return found
    if isinstance(found, TextualInversion):
        said = f"{found.name} is a textual inversion, a word and no adapter"
        raise ValueError(f"{said}: embeddings={{{found.word!r}: ..}}")
    raise ValueError(f"adapters take what sdjax.load_adapter gives, or a path, with {USAGE}; not {short(source)}")


@dataclass(frozen=True, eq=False)
class Closet:
    """Where the names in prompts are looked up.

    Attributes:
      named: adapters or paths by name. folder: of adapter files, looked through with all folders in it, or None.
    """

    named: Mapping[str, Any]
    folder: Path | None = None

    def find(self, name: str) -> Wearable:
        """By the name it was given under, by its file's stem, or by the name its file was trained under.

        As A1111 has it (extensions-builtin/Lora/networks.py, `available_network_aliases`). Raises ValueError, with the
        nearest.
        """
        if name in self.named:
            return self._opened[name]
        files = {path.stem: path for path in reversed(self._files)}
        if name in files:
            return self._read(files[name])
        alias = next((path for path in self._files if name in _aliases(path)), None)
        if alias is not None:
            return self._read(alias)
        known = [*self.named, *files]
        where = "" if self.folder is None else f" and none in {self.folder}"
        said = f"the prompt names the adapter {short(name)}, which was not given{where}"
        if not known:
            raise ValueError(f'{said}: adapters={{"{name}": sdjax.load_adapter(..)}} gives it, or adapters_folder=')
        raise ValueError(unknown(said, name, known))

    @cached_property
    def _opened(self) -> dict[str, Wearable]:
        return {name: opened(source, name) for name, source in self.named.items()}

    @cached_property
    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise ValueError(f"adapters_folder {self.folder} is no folder")
        return sorted(self.folder.rglob("*.safetensors"))

    @cached_property
    def _read(self) -> Any:
        return cache(opened)


def _aliases(path: Path) -> tuple[str, ...]:
    """The names that a file says it was trained under; none of a file that cannot be read."""
    try:
        told = read_header(path).metadata.get("ss_output_name")
    except CheckpointError:
        return ()
    return () if told is None else (told,)


def worn_by(given: Any, closet: Closet, tags: Sequence[Sequence[Tag]], runs: Sequence[Run]) -> list[Worn]:
    """What each of b pictures wears: of `adapters=[..]` and of the tags in its prompt. Raises ValueError.

    tags: of each picture's prompt.
    """
    rows: dict[tuple[Any, ...], Worn] = {}
    times: Counter[tuple[Any, ...]] = Counter()

    def wear(adapter: Wearable, i: int, scale: Scale, ranks: int | None = None, by_tag: bool = False) -> None:
        """One more adapter of picture i; what it wears twice counts twice."""
        told = (id(adapter), str(scale.blocks), ranks, by_tag)
        times[(*told, i)] += 1
        key = (*told, times[(*told, i)])
        worn = rows.setdefault(key, Worn(adapter, (None,) * len(runs), scale.blocks, ranks, by_tag))
        rows[key] = replace(worn, scales=(*worn.scales[:i], scale, *worn.scales[i + 1 :]))

    for i, own in enumerate(spread(given, len(runs), "adapters") if are_words(given) else ()):
        for name, digest, scale in _told(own):
            adapter = closet.find(name)
            if adapter.short_hash != digest:
                notice(f"adapter {name} is another file ({adapter.short_hash}) than the settings name ({digest})")
            if scale is not None:
                wear(adapter, i, scale)
    for adapter, value in () if are_words(given) else opened_pairs(given):
        for i, scale in enumerate(Scale.column(value, len(runs), adapter.name)):
            wear(adapter, i, scale)
    for i, own in enumerate(tags):
        for tag in own:
            if tag.kind not in (*LORA, *HYPERNET):
                notice(f"<{shown(tag.kind)}:..> in a prompt is a tag that nothing here reads; it is left out")
                continue
            wear(closet.find(tag.name), i, _scale_of(tag, runs[i].whole.steps), tag.dyn, by_tag=True)
    return list(rows.values())


def are_words(given: Any) -> bool:
    """Whether adapters are given in the words of settings, for all pictures or for each, and not as paths."""
    each = given if is_list(given) else [given]
    return any(isinstance(one, str) and WORDS.match(one) for one in each)


def _told(words: str | None) -> list[tuple[str, str, Scale | None]]:
    """What the words of a picture's settings name: (adapter, its hash, its scale if no tag says it)."""
    found = WORDS.findall(words or "")
    return [(name, digest, Scale.parse(scale, name) if scale else None) for name, digest, scale in found]


def _scale_of(tag: Tag, steps: int) -> Scale:
    """What a tag in a prompt says; its places in the run are steps there."""
    said: dict[str, Any] = {"unet": tag.unet, "text_encoder": tag.te, "start": _place(tag.start, steps, 0.0)}
    said |= {"end": _place(tag.stop, steps, 1.0)} | ({} if tag.lbw is None else {"blocks": _blocks(tag.lbw)})
    return Scale.read(said, tag.name)


def _blocks(lbw: str | tuple[float, ...]) -> str | list[float]:
    return lbw if isinstance(lbw, str) else list(lbw)


def _place(step: float | None, steps: int, usual: float) -> float:
    return usual if step is None else min(1.0, step / max(steps, 1))
