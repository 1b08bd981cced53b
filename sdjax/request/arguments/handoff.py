"""Runs of several parts: from latents of another run, up to some place, or handed on to a refiner."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdjax.core.short import short
from sdjax.model.networks import Networks
from sdjax.model.spec import ModelSpec
from sdjax.request import checks
from sdjax.request.arguments.size_conditioning import REFINER_IDS
from sdjax.request.arguments.topic import GIVEN, UNUSUAL, Flag, Topic, argument


@dataclass(frozen=True, eq=False, repr=False)
class Handoff(Topic):
    """See `generate`. refiner: a loaded model, which has its `spec` and its `networks`."""

    denoising_start: float | None = argument(None, float, int, span=(0, 1), told=UNUSUAL)
    denoising_end: float | None = argument(None, float, int, span=(0, 1), told=UNUSUAL)
    latents: Any = argument(None, str, told=GIVEN, raw=True)
    # A file holds a refiner's name, which is refused with the remedy.
    refiner: Any = argument(None, str, told=UNUSUAL, raw=True)
    refiner_start: float = argument(
        0.8, float, int, span=(0, 1), told=UNUSUAL, flag=Flag("Where in the run the refiner takes over, 0 to 1.")
    )

    def check_refiner(self, spec: ModelSpec) -> tuple[Networks, float]:
        """The refiner's networks, and where in the run of `spec` they take over. Raises ValueError."""
        refiner = getattr(self.refiner, "spec", None)
        if not isinstance(refiner, ModelSpec):
            raise ValueError(f"refiner must be a loaded checkpoint, sdjax.load(...), not {short(self.refiner)}")
        if spec.time_ids == REFINER_IDS:
            raise ValueError(f"{spec.name} is itself a refiner; call generate of the base model with refiner=")
        if self.denoising_start is not None or self.denoising_end is not None:
            raise ValueError("refiner= cuts the run at refiner_start; denoising_start and _end are for runs without")
        cut = self.refiner_start
        if isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 < cut < 1:
            raise ValueError(
                f"refiner_start must be a number between 0 and 1, where the refiner takes over, not {cut!r}"
            )
        mine, other = ((one.vae.scaling_factor, one.vae.latent_channels, one.vae.factor) for one in (spec, refiner))
        if not spec.encoders or not refiner.encoders:
            raise ValueError("a model that varies pictures is told no text: it has no refiner and is none")
        if mine != other or refiner.unet.in_channels != refiner.vae.latent_channels:
            raise ValueError(f"{refiner.name} works in other latents than {spec.name}; a refiner shares the base's VAE")
        return self.refiner.networks, cut

    def check_latents(self, shape: tuple[int, ...], goes_on: bool) -> np.ndarray | None:
        """The latents that were given, float32 of this shape, or None. Raises ValueError.

        goes_on: whether others come from a model that ran before.
        """
        if self.latents is not None:
            return checks.check_latents(self.latents, shape)
        if self.denoising_start is not None and not goes_on:
            raise ValueError("denoising_start goes on from latents: pass those of a run with denoising_end as latents=")
        return None

    def settings(self) -> dict[str, Any]:
        """As of other topics; a refiner goes by its name, and where it takes over belongs to it."""
        told = super().settings()
        told.pop("refiner_start", None)
        if self.refiner is not None:
            told |= {"refiner": self.refiner.spec.name, "refiner_start": self.refiner_start}
        return told
