"""The samplers by name: which solver, on which convention of levels, reading which config keys."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.diffusion import solvers
from sdjax.diffusion.noise import Settings
from sdjax.diffusion.spacing import Schedule, ddim_schedule, dpm_schedule, euler_schedule, pndm_schedule
from sdjax.diffusion.table import Linear


@dataclass(frozen=True)
class Sampler:
    """A solver and how a checkpoint's scheduler config is to be read for it.

    Attributes:
      solve: (tape, schedule, **options) -> the last latents.
      schedule: (settings, steps) -> the levels, in the convention of the solver's diffusers class.
      reads: keys of scheduler_config.json which that class has; the others are ignored, as diffusers ignores
        them.
      defaults: that class's own defaults where they differ from `Settings`.
      order: p where the paper claims a global error of O(h^p); for samplers that renew noise, the strong order at
        their default options.
    """

    solve: Callable[..., Linear]
    schedule: Callable[[Settings, int], Schedule]
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    order: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What `solve` takes by keyword, with its defaults. Those named as a key in `reads` come from the config."""
        parameters = inspect.signature(self.solve).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_BETAS = frozenset(
    [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
    ]
)
_THRESHOLDING = frozenset(["thresholding", "dynamic_thresholding_ratio", "sample_max_value"])
_CLIP = _THRESHOLDING | {"clip_sample", "clip_sample_range"}
_SIGMAS = frozenset(
    [
        "rescale_betas_zero_snr",
        "final_sigmas_type",
        "sigma_min",
        "sigma_max",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
    ]
)
_EULER = _BETAS | _SIGMAS | {"interpolation_type", "timestep_type"}
_DPM = (
    _BETAS
    | _SIGMAS
    | _THRESHOLDING
    | frozenset(
        [
            "solver_type",
            "lower_order_final",
            "euler_at_final",
            "use_lu_lambdas",
            "use_flow_sigmas",
            "lambda_min_clipped",
            "use_dynamic_shifting",
        ]
    )
)

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        solvers.ddim,
        ddim_schedule,
        reads=_BETAS | _CLIP | {"set_alpha_to_one", "rescale_betas_zero_snr"},
        defaults={"clip_sample": True, "set_alpha_to_one": True},
    ),
    "pndm": Sampler(solvers.pndm, pndm_schedule, reads=_BETAS | {"set_alpha_to_one"}, order=2),
    "euler": Sampler(solvers.euler, euler_schedule, reads=_EULER, defaults={"timestep_spacing": "linspace"}),
    "dpmpp_2m": Sampler(
        solvers.dpmpp_2m,
        dpm_schedule,
        reads=_DPM,
        defaults={"timestep_spacing": "linspace"},
        order=2,
    ),
}


def sampler(which: "str | Sampler | Callable[..., Linear]") -> tuple[str, Sampler]:
    """The name and the record of a sampler: one of `SAMPLERS`, a `Sampler`, or a plain solver function.

    A plain function (tape, schedule) -> latents gets the levels of the Euler convention.

    Raises:
      ValueError: no sampler has that name; the nearest are named.
    """
    if isinstance(which, Sampler):
        return getattr(which.solve, "__name__", "custom"), which
    if callable(which):
        return getattr(which, "__name__", "custom"), Sampler(
            which, euler_schedule, _EULER, {"timestep_spacing": "linspace"}
        )
    if which in SAMPLERS:
        return which, SAMPLERS[which]
    near = difflib.get_close_matches(str(which), SAMPLERS, n=3, cutoff=0.3) or list(SAMPLERS)
    raise ValueError(f"sampler {which!r} is unknown; nearest: {', '.join(near)}; known: {', '.join(SAMPLERS)}")
