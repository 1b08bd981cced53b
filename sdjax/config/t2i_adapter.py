"""The T2I-Adapter: a few convolutions that look at a picture once (Mou et al. 2023, arXiv:2302.08453)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax.core.json_fields import Fields
from sdjax.core.limits import MOST_RESNETS

Json = Mapping[str, Any]
FULL, LIGHT, XL = "full_adapter", "light_adapter", "full_adapter_xl"
_PIXELS = {FULL: 8, LIGHT: 8, XL: 16}
_STAGES = 4  # one for each place where a U-Net of Stable Diffusion takes its features in
_HALVED = {FULL: (False, True, True, True), LIGHT: (False, True, True, True), XL: (False, False, True, False)}


@dataclass(frozen=True)
class T2IAdapterConfig:
    """A T2I-Adapter's `config.json` (diffusers' T2IAdapter).

    Attributes:
      adapter_type: FULL, LIGHT or XL.
      in_channels: of the picture that it looks at: 3, or 1 for drawings and edges.
      channels: of the features of each of its four stages.
      resnets: of each stage.
      downscale_factor: how many pixels of the picture are one of the first stage, each way.
    """

    adapter_type: str = FULL
    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    resnets: int = 2
    downscale_factor: int = 8

    @property
    def outputs(self) -> int:
        """How many features it gives."""
        return len(self.channels)

    @property
    def halved(self) -> tuple[bool, ...]:
        """Whether each stage begins by halving the picture."""
        return _HALVED[self.adapter_type]

    @classmethod
    def from_dict(cls, config: Json, where: str = "t2iadapter/config.json") -> "T2IAdapterConfig":
        """Reads the dict of a T2I-Adapter's config.json, which messages call `where`. Raises ConfigError."""
        read = Fields(config, where)
        kind = read.one_of("adapter_type", (FULL, LIGHT, XL), FULL)
        # The last stage of a light one is as wide as the one before, and its config leaves it out.
        stages = _STAGES - (kind == LIGHT)
        widths = read.wholes("channels", _STAGES) if config.get("channels") else (320, 640, 1280, 1280)[:stages]
        if len(widths) != stages:
            raise read.error("channels", f"{stages} widths for a {kind}", list(widths))
        if kind == LIGHT:
            read.multiples("channels", widths, "the narrowing by", [4] * stages)
            widths = (*widths, widths[-1])
        return cls(
            adapter_type=kind,
            in_channels=read.whole("in_channels", 3, most=64),
            channels=widths,
            resnets=read.whole("num_res_blocks", 2, most=MOST_RESNETS),
            downscale_factor=read.whole("downscale_factor", _PIXELS[kind], most=64),
        )
