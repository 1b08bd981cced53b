"""How strongly an adapter counts: in each part of a model, in each of its blocks, and where in a run.

What is given, beside an adapter, is a number, a list with one for each picture, or a mapping:

    0.8
    {"unet": 0.6, "text_encoder": 0.3}                  a part that is not named counts as "scale" says, 1 by default;
                                                        "text_encoder" stands for both of SDXL's unless 2 is named
    {"scale": 0.8, "start": 0.2, "end": 1.0}            from one place in the run to another, 0 its beginning, 1 its end
    {"scale": 0.8, "blocks": "OUTALL"}                  by block of the U-Net: see `blocks`
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sdjax.adapters.blocks import BlockWeights
from sdjax.core.errors import unknown
from sdjax.core.numbers import is_number
from sdjax.core.short import short

PARTS = ("unet", "text_encoder", "text_encoder_2")
KEYS = (*PARTS, "scale", "start", "end", "blocks")
USAGE = 'a number, a list with one for each picture, or a mapping as {"unet": 0.6, "text_encoder": 0.3}'


@dataclass(frozen=True)
class Scale:
    """How strongly one picture wears an adapter.

    Attributes:
      parts: m of each part of a model, by component. start, end: where in the run it is worn, both included.
      blocks: a factor on top for each module, or None.
    """

    parts: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 1.0))
    start: float = 0.0
    end: float = 1.0
    blocks: BlockWeights | None = None

    @classmethod
    def read(cls, value: Any, name: str) -> "Scale":
        """From one picture's number or mapping. Raises ValueError, naming the adapter."""
        given: Mapping[str, Any] = value if isinstance(value, Mapping) else {"scale": value}
        for key in given:
            if key not in KEYS:
                raise ValueError(unknown(f"adapter {name}: {short(key)} is no part of a scale", key, KEYS))
        for key in set(given) - {"blocks"}:
            if not is_number(given[key], int | float) or not math.isfinite(given[key]):
                raise ValueError(f"adapter {name}: {key} must be a finite number, not {short(given[key])}")
        usual = given.get("scale", 1.0)
        first = given.get("text_encoder", usual)
        parts = {
            "unet": given.get("unet", usual),
            "text_encoder": first,
            "text_encoder_2": given.get("text_encoder_2", first),
        }
        start, end = given.get("start", 0.0), given.get("end", 1.0)
        if not 0 <= start <= end <= 1:
            raise ValueError(
                f"adapter {name}: start and end are places in the run from 0 to 1, start first, not {start} and {end}"
            )
        blocks = given.get("blocks")
        read = None if blocks is None else BlockWeights.read(blocks)
        return cls({part: float(one) for part, one in parts.items()}, float(start), float(end), read)

    @classmethod
    def column(cls, value: Any, count: int, name: str) -> list["Scale"]:
        """For `count` pictures, from one value or a list, also inside of a mapping. Raises ValueError."""
        rows: Sequence[Any]
        if isinstance(value, Mapping):
            columns = {key: _each(one, count, f"{name}: {key}") for key, one in value.items() if key != "blocks"}
            beside = {"blocks": value["blocks"]} if "blocks" in value else {}
            rows = [{key: column[i] for key, column in columns.items()} | beside for i in range(count)]
        else:
            rows = _each(value, count, name)
        return [cls.read(row, name) for row in rows]

    def of(self, unet: Mapping[str, Any]) -> "Scale":
        """The same for a U-Net of these parameters, whose blocks are counted. Raises ValueError for other blocks."""
        return self if self.blocks is None else replace(self, blocks=self.blocks.of(unet))

    def factor(self, component: str, path: str) -> float:
        """m of one module of a part of a model."""
        return self.parts.get(component, 0.0) * (1.0 if self.blocks is None else self.blocks(component, path))

    def __str__(self) -> str:
        """In few words, as settings have it: "0.8", or "unet=0.6:text_encoder=0.3:start=0.2"."""
        alike = len(set(self.parts.values())) == 1
        said = [f"{self.parts['unet']:g}"] if alike else [f"{part}={m:g}" for part, m in self.parts.items()]
        if (self.start, self.end) != (0.0, 1.0):
            said += [f"start={self.start:g}", f"end={self.end:g}"]
        return ":".join(said + ([] if self.blocks is None else [f"blocks={str(self.blocks).replace(',', '/')}"]))

    @classmethod
    def parse(cls, text: str, name: str) -> "Scale":
        """From its own words. Raises ValueError, also for blocks by rule, which words do not tell."""
        said: dict[str, Any] = {}
        for word in text.split(":"):
            key, _, value = word.rpartition("=") if word.count("=") < 2 else (word, "", "")
            try:
                said[key or "scale"] = value.replace("/", ",") if key == "blocks" else float(value)
            except ValueError:
                raise ValueError(f"adapter {name}: {short(text)} is no scale that can be read") from None
        return cls.read(said, name)


def _each(value: Any, count: int, name: str) -> Sequence[Any]:
    """One value for all of `count` pictures, or a list of as many. Raises ValueError where the lengths differ."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"adapter {name}: {len(value)} scales for {count} pictures; give one, or one per picture")
    return value
