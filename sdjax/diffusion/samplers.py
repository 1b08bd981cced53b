"""The samplers by name: which solver, on which convention of levels, reading which config keys."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdjax.core.errors import closest
from sdjax.core.short import short
from sdjax.diffusion import names, solvers
from sdjax.diffusion.noise import Settings
from sdjax.diffusion.spacing import (
    Schedule,
    dpm_schedule,
    euler_schedule,
    kdpm2_schedule,
    lms_schedule,
    singlestep_schedule,
    unipc_schedule,
)
from sdjax.diffusion.table import Linear
from sdjax.diffusion.timesteps import (
    ddim_schedule,
    ddpm_schedule,
    inverse_schedule,
    lcm_schedule,
    pndm_schedule,
    prk_schedule,
    tcd_schedule,
)


@dataclass(frozen=True)
class Sampler:
    """A solver and how a checkpoint's scheduler config is to be read for it.

    Attributes:
      solve: (tape, schedule, **options) -> the last latents, at `schedule.end`.
      schedule: (settings, steps) -> the levels, in the convention of the solver's diffusers class.
      reads: keys of scheduler_config.json which that class has, and `rescale_betas_zero_snr`, which is the network's
        own noise and not the solver's; the others are ignored, as diffusers ignores them; `overrides.dropped` says so.
      defaults: that class's own defaults where they differ from `Settings`.
      order: p where the paper claims a global error of O(h^p); for samplers that renew noise, the strong order at
        their default options; 0 for those that converge to nothing.
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


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


# ---------------------------------------------------------------------- config keys, by what they are about

_BETAS = _keys(
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr prediction_type "
    "timestep_spacing steps_offset"
)
_THRESHOLDING = _keys("thresholding dynamic_thresholding_ratio sample_max_value")
_CLIP = _THRESHOLDING | _keys("clip_sample clip_sample_range")
_SIGMAS = _keys("final_sigmas_type sigma_min sigma_max use_karras_sigmas use_exponential_sigmas use_beta_sigmas")
_EULER = _BETAS | _SIGMAS | _keys("interpolation_type")
_EDM = _BETAS | (_SIGMAS - _keys("final_sigmas_type"))
_DPM = (
    _BETAS
    | _SIGMAS
    | _THRESHOLDING
    | _keys("solver_type lower_order_final euler_at_final use_lu_lambdas lambda_min_clipped")
)
_UNIPC = _keys("solver_order solver_type predict_x0 lower_order_final disable_corrector")
_SA = _keys("predictor_order corrector_order algorithm_type lower_order_final lambda_min_clipped")
# DEIS and SA-Solver have no say in where they end: at the smallest training level.
_NOISY_END = _SIGMAS - _keys("final_sigmas_type")
_PNDM = _BETAS | _keys("set_alpha_to_one")
_DISTILLED = _BETAS | _keys("original_inference_steps")

_LINSPACE = {"timestep_spacing": "linspace"}
_SD_ENDS = {"beta_start": 0.00085, "beta_end": 0.012}
_EDM_BETAS = {**_LINSPACE, **_SD_ENDS}
_LCM_BETAS = {**_SD_ENDS, "beta_schedule": "scaled_linear"}


def _noisy_end(settings: Settings, steps: int) -> Schedule:
    """The Euler convention without its last step: dpm_fast ends at the last level that holds noise."""
    whole = euler_schedule(settings, steps)
    last = whole.steps[-1][0]
    return replace(whole, end=last) if whole.end.sigma == 0.0 else whole


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        solvers.ddim,
        ddim_schedule,
        reads=_BETAS | _CLIP | {"set_alpha_to_one"},
        defaults={"clip_sample": True, "set_alpha_to_one": True},
    ),
    "ddim_inverse": Sampler(
        solvers.ddim_inverse,
        inverse_schedule,
        reads=_BETAS | {"clip_sample", "clip_sample_range", "set_alpha_to_one"},
        defaults={"clip_sample": True, "set_alpha_to_one": True},
    ),
    "ddpm": Sampler(
        solvers.ddpm,
        ddpm_schedule,
        reads=_BETAS | _CLIP | {"variance_type"},
        defaults={"clip_sample": True},
    ),
    "pndm": Sampler(solvers.pndm, pndm_schedule, reads=_PNDM, order=2),
    "pndm_prk": Sampler(solvers.pndm_prk, prk_schedule, reads=_PNDM, order=2),
    "ipndm": Sampler(solvers.ipndm, euler_schedule, reads=_EULER, defaults=_LINSPACE, order=2),
    "lcm": Sampler(
        solvers.lcm, lcm_schedule, reads=_DISTILLED | _CLIP | {"timestep_scaling"}, defaults=_LCM_BETAS, order=0
    ),
    "tcd": Sampler(solvers.tcd, tcd_schedule, reads=_DISTILLED, defaults=_LCM_BETAS, order=0),
    "euler": Sampler(solvers.euler, euler_schedule, reads=_EULER, defaults=_LINSPACE),
    "euler_ancestral": Sampler(solvers.euler_ancestral, euler_schedule, reads=_BETAS, defaults=_LINSPACE),
    "heun": Sampler(
        solvers.heun, euler_schedule, reads=_EDM | {"clip_sample", "clip_sample_range"}, defaults=_EDM_BETAS, order=2
    ),
    "dpm2": Sampler(solvers.dpm2, kdpm2_schedule, reads=_EDM, defaults=_EDM_BETAS, order=2),
    "dpm2_ancestral": Sampler(solvers.dpm2_ancestral, kdpm2_schedule, reads=_EDM, defaults=_EDM_BETAS),
    "lms": Sampler(solvers.lms, lms_schedule, reads=_EDM, defaults=_LINSPACE, order=4),
    "dpm_fast": Sampler(solvers.dpm_fast, _noisy_end, reads=_EULER, defaults=_LINSPACE, order=3),
    "dpmpp_2s_ancestral": Sampler(solvers.dpmpp_2s_ancestral, euler_schedule, reads=_EULER, defaults=_LINSPACE),
    "dpmpp_sde": Sampler(solvers.dpmpp_sde, lms_schedule, reads=_EDM, defaults=_EDM_BETAS),
    "dpmpp_3m_sde": Sampler(
        solvers.dpmpp_3m_sde,
        dpm_schedule,
        reads=_BETAS | _SIGMAS | _THRESHOLDING | {"use_lu_lambdas", "lambda_min_clipped"},
        defaults=_LINSPACE,
    ),
    "gradient_estimation": Sampler(solvers.gradient_estimation, euler_schedule, reads=_EULER, defaults=_LINSPACE),
    "restart": Sampler(solvers.restart, euler_schedule, reads=_EULER, defaults=_LINSPACE, order=2),
    "dpmpp_2m": Sampler(solvers.dpmpp_2m, dpm_schedule, reads=_DPM, defaults=_LINSPACE, order=2),
    "dpmpp_3m": Sampler(solvers.dpmpp_3m, dpm_schedule, reads=_DPM, defaults=_LINSPACE, order=2),
    "dpmpp_2m_sde": Sampler(solvers.dpmpp_2m_sde, dpm_schedule, reads=_DPM, defaults=_LINSPACE),
    "dpm_solver": Sampler(
        solvers.dpm_solver,
        dpm_schedule,
        reads=_DPM | {"solver_order"},
        defaults={**_LINSPACE, "final_sigmas_type": "sigma_min"},
        order=2,
    ),
    "dpmpp_2s": Sampler(
        solvers.dpmpp_2s,
        singlestep_schedule,
        reads=(_DPM | {"solver_order"}) - {"timestep_spacing", "steps_offset", "euler_at_final", "use_lu_lambdas"},
        defaults={**_LINSPACE, "lower_order_final": False},
        order=2,
    ),
    "unipc": Sampler(
        solvers.unipc,
        unipc_schedule,
        reads=_BETAS | _SIGMAS | _THRESHOLDING | _UNIPC,
        defaults={**_LINSPACE, "solver_type": "bh2"},
        order=3,
    ),
    "deis": Sampler(
        solvers.deis,
        unipc_schedule,
        reads=_BETAS | _NOISY_END | _THRESHOLDING | {"solver_order", "lower_order_final"},
        defaults={**_LINSPACE, "final_sigmas_type": "sigma_min"},
        order=2,
    ),
    "sa_solver": Sampler(
        solvers.sa_solver,
        unipc_schedule,
        reads=_BETAS | _NOISY_END | _THRESHOLDING | _SA,
        defaults={
            **_LINSPACE,
            "final_sigmas_type": "sigma_min",
            "algorithm_type": "data_prediction",
        },
    ),
    "er_sde": Sampler(solvers.er_sde, euler_schedule, reads=_EULER, defaults=_LINSPACE),
    "res_multistep": Sampler(solvers.res_multistep, euler_schedule, reads=_EULER, defaults=_LINSPACE, order=2),
}


def sampler(which: "str | Sampler | Callable[..., Linear]") -> tuple[str, Sampler]:
    """The name and the record of a sampler: one of `SAMPLERS`, a `Sampler`, or a plain solver function.

    A plain function (tape, schedule) -> latents gets the levels of the Euler convention.

    Raises:
      ValueError: no sampler has that name; the nearest are named.
    """
    if isinstance(which, Sampler):
        return getattr(which.solve, "__name__", "custom"), which
    if callable(which) and not isinstance(which, type):
        return getattr(which, "__name__", "custom"), Sampler(which, euler_schedule, _EULER, _LINSPACE)
    if isinstance(which, str) and which in SAMPLERS:
        return which, SAMPLERS[which]
    raise ValueError(_unknown(which))


def _unknown(which: Any) -> str:
    """What to say of a sampler that there is not: what it is called here, or the nearest."""
    named = isinstance(which, str | type)
    word = (which.__name__ if isinstance(which, type) else which) if named else type(which).__name__
    meant = names.here(word, SAMPLERS)
    if meant == {"sampler": "dpm_adaptive"}:
        return "dpm_adaptive chooses its steps as it goes, so it has no plan: call sdjax.dpm_adaptive"
    if meant is not None:
        return f"sampler {word!r} is another program's name; write {', '.join(f'{k}={v!r}' for k, v in meant.items())}"
    if not named:
        return f"sampler must be a name, a Sampler or a function (tape, schedule) -> latents, not {short(which)}"
    near = closest(word, SAMPLERS, most=3, cutoff=0.5)
    told = f"nearest: {', '.join(near)}; sdjax.samplers() lists all" if near else f"known: {', '.join(SAMPLERS)}"
    return f"sampler {short(word)} is unknown; {told}"
