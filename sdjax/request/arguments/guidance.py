"""How strongly the prompt pulls, and where in a run: see `diffusion.guidance`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.model.spec import ModelSpec
from sdjax.request import checks
from sdjax.request.arguments.topic import NONE, Flag, Topic, argument


@dataclass(frozen=True, eq=False, repr=False)
class GuidanceArguments(Topic):
    """Each one for all pictures, or a list with one for each; see `generate`."""

    guidance_scale: float | Sequence[float] | None = argument(
        None, float, int, span=(0, 10_000), each="picture",
        flag=Flag("Pull of the prompt, 1 for none; default: the model's own."),
    )  # fmt: skip
    guidance_schedule: str | None | Sequence[str | None] = argument(
        None, str, NONE, each="picture",
        flag=Flag("Where it pulls, as interval:0.2:0.8, noise_interval:0.28:5.42, linear, cosine."),
    )  # fmt: skip
    guidance_rescale: float | Sequence[float] = argument(
        0.0, float, int, span=(0, 1), each="picture",
        flag=Flag("How much of the contrast it adds is taken back.", least=0.0, most=1.0),
    )  # fmt: skip

    def checked(self, spec: ModelSpec, count: int) -> "GuidanceArguments":
        """For `count` pictures, the model's own scale where none was given. Raises ValueError."""
        scales = checks.check_scales(spec.guidance_scale if self.guidance_scale is None else self.guidance_scale, count)
        schedules = checks.spread(self.guidance_schedule, count, "guidance_schedule")
        columns = {
            "guidance_scale": scales.tolist(),
            "guidance_schedule": [str(GuidanceSchedule.read(one)) for one in schedules],
            "guidance_rescale": checks.check_rescales(self.guidance_rescale, count).tolist(),
        }
        return replace(self, **{name: checks.as_given(getattr(self, name), one) for name, one in columns.items()})
