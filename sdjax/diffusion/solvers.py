"""The solvers, each as the plain maths of its paper.

A solver walks over `schedule.steps`, pairs of levels (here, there). `tape.denoise(x, level)` is one network
evaluation and gives D, the predicted clean latents; x is a symbolic linear form (see `table`). x goes to the
network at the variance-preserving scale x = alpha x0 + sigma e; solvers of the k-diffusion family hold x /
alpha and multiply by alpha on the way in. To add a solver: write the function, and name it in `SAMPLERS` with
the convention of its levels.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax.diffusion.noise import Level, Settings
from sdjax.diffusion.prediction import coefficients
from sdjax.diffusion.spacing import Schedule, ddim_schedule, dpm_schedule, euler_schedule, pndm_schedule
from sdjax.diffusion.table import Linear, Tape


def ddim(tape: Tape, schedule: Schedule, *, eta: float = 0.0, clip: float = math.inf) -> Linear:
    """DDIM, Song et al. 2020, arXiv:2010.02502, equations 12 and 16.

    `eta`, 0 .. 1: share of fresh noise, from none to as much as DDPM's.

    `clip` bounds D but not the noise direction, which is taken from the unclipped D, as in diffusers.
    """
    x = tape.x_T
    for here, there in schedule.steps:
        denoised = tape.denoise(x, here)
        direction = (x - here.alpha * denoised) / here.sigma
        clipped = tape.clip(denoised, clip)
        fresh = eta * math.sqrt((there.sigma / here.sigma) ** 2 * max(0.0, 1.0 - (here.alpha / there.alpha) ** 2))
        x = there.alpha * clipped + math.sqrt(there.sigma**2 - fresh**2) * direction
        if eta:  # one draw per step even where its weight is 0, so that draw k always belongs to step k
            x = x + fresh * tape.draw()
    return x


def pndm(tape: Tape, schedule: Schedule) -> Linear:
    """PLMS: PNDM without its Runge-Kutta warm-up, Liu et al. 2022, arXiv:2202.09778, equations 9 and 12.

    Adams-Bashforth on the network's raw outputs, warmed up by one Heun step (so N + 1 evaluations); the mixed
    output then makes one DDIM step. Mixed v-predictions of different levels are no v-prediction of any level,
    so with those a constant picture is reproduced only up to the order of the method.
    """
    if tape.prediction == "v_prediction" and len(schedule.steps) > 1:
        tape.inexact = tape.inexact or "PNDM mixes v-predictions of different levels"
    x = tape.x_T
    outputs: list[Linear] = []
    for i, (here, there) in enumerate(schedule.steps):
        told = there if i == 1 else here
        raw = tape.raw(tape.denoise(x, told), x, told)
        if i == 1:  # the first step again, now with the slopes of both its ends
            x = _transfer(tape, tape.x_T, (raw + outputs[0]) / 2, here, there)
        else:
            outputs.append(raw)
            x = _transfer(tape, x, _adams_bashforth(outputs), here, there)
    return x


def _adams_bashforth(outputs: list[Linear]) -> Linear:
    """The next slope from up to four past ones; arXiv:2202.09778, equation 12 and its lower orders."""
    order = min(len(outputs), 4)
    weights = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    terms = [w * raw for w, raw in zip(weights[order], reversed(outputs), strict=False)]
    return sum(terms[1:], start=terms[0])


def _transfer(tape: Tape, x: Linear, raw: Linear, here: Level, there: Level) -> Linear:
    """arXiv:2202.09778, equation 9 (the deterministic DDIM step) with the network's output given."""
    c_skip, c_out = coefficients(tape.prediction, here)
    denoised = c_skip * x + c_out * raw
    return there.alpha * denoised + there.sigma * (x - here.alpha * denoised) / here.sigma


def euler(tape: Tape, schedule: Schedule) -> Linear:
    """Euler's method on the probability-flow ODE; Karras et al. 2022, arXiv:2206.00364, equations 1 and 3."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        denoised = tape.denoise(here.alpha * x, here)
        x = x + (there.ve - here.ve) * (x - denoised) / here.ve
    return x


def dpmpp_2m(
    tape: Tape,
    schedule: Schedule,
    *,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Linear:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    solver_type "heun" is the second-order form with the exact integral of the slope.

    The last step is of first order where it ends clean (there h is infinite), where `euler_at_final` says so,
    and in runs under 15 steps with `lower_order_final`.
    """
    x, last, past = tape.x_T, len(schedule.steps) - 1, None
    for i, (here, there) in enumerate(schedule.steps):
        denoised = tape.denoise(x, here)
        decay = there.ve / here.ve  # e^-h, with h the step in log SNR
        update = there.alpha * (1.0 - decay) * denoised
        first = i == last and (there.sigma == 0.0 or euler_at_final or (lower_order_final and last + 1 < 15))
        if past and not first:
            h = there.log_snr - here.log_snr
            slope = (denoised - past[0]) * (h / (here.log_snr - past[1].log_snr))
            weight = (1.0 - decay) / 2 if solver_type == "midpoint" else 1.0 - (1.0 - decay) / h
            update = update + there.alpha * weight * slope
        x = (there.sigma / here.sigma) * x + update
        past = (denoised, here)
    return x


@dataclass(frozen=True)
class Sampler:
    """A solver and how a checkpoint's scheduler config is to be read for it.

    Attributes:
      solve: (tape, schedule, **options) -> the last latents.
      schedule: (settings, steps) -> the levels, in the convention of the solver's diffusers class.
      reads: keys of scheduler_config.json which that class has; the others are ignored, as diffusers ignores
        them.
      defaults: that class's own defaults where they differ from `Settings`.
      options: names that `solve` takes, from `Settings` or from `plan`'s own arguments.
    """

    solve: Callable[..., Linear]
    schedule: Callable[[Settings, int], Schedule]
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


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
_CLIP = frozenset(["clip_sample", "clip_sample_range", "thresholding"])
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
    | frozenset(
        [
            "thresholding",
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
        ddim,
        ddim_schedule,
        reads=_BETAS | _CLIP | {"set_alpha_to_one", "rescale_betas_zero_snr"},
        defaults={"clip_sample": True, "set_alpha_to_one": True},
        options=("eta", "clip"),
    ),
    "pndm": Sampler(pndm, pndm_schedule, reads=_BETAS | {"set_alpha_to_one"}),
    "euler": Sampler(euler, euler_schedule, reads=_EULER, defaults={"timestep_spacing": "linspace"}),
    "dpmpp_2m": Sampler(
        dpmpp_2m,
        dpm_schedule,
        reads=_DPM,
        defaults={"timestep_spacing": "linspace"},
        options=("solver_type", "lower_order_final", "euler_at_final"),
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
