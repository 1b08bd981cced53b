"""sdjax's plans against diffusers' own schedulers, on a network both frameworks share.

diffusers computes its betas, products and sigmas in float32; sdjax in float64. What that leaves is printed by
`python -m tests.parity.test_schedulers`.
"""

import itertools

import jax
import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

from sdjax.diffusion.plan import plan
from tests import reference
from tests.parity.toy import BOUND, X_T, difference, diffusers_run, sdjax_run, with_schedule
from tests.reference import SD, ZERO_SNR, draws, toy

CLASSES = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
STEPS = (1, 2, 7, 20, 50)
SPACINGS = ("leading", "trailing", "linspace")


def schedules(name):
    return (*SPACINGS, "karras") if name in ("euler", "dpmpp_2m") else SPACINGS


def cases():
    for name in CLASSES:
        for schedule, prediction in itertools.product(schedules(name), ("epsilon", "v_prediction", "sample")):
            if (name, prediction) != ("pndm", "sample"):  # diffusers' PNDM refuses it
                yield name, schedule, prediction


def check(name, steps, config, schedule, **extra):
    ours = plan(name, steps, config, schedule, **{k: v for k, v in extra.items() if k == "eta"})
    timesteps, theirs = diffusers_run(CLASSES[name], steps, with_schedule(config, schedule), **extra)
    np.testing.assert_allclose(ours.timesteps, timesteps, rtol=1e-6, atol=2e-4)
    if name == "euler":  # diffusers leaves a result that ends above 0 at x0 + ve e
        theirs = theirs * ours.alpha[-1]
    return difference(sdjax_run(ours, extra.get("noise")), theirs)


@pytest.mark.parametrize(("name", "schedule", "prediction"), list(cases()))
def test_equal_to_diffusers(name, schedule, prediction):
    for steps in STEPS:
        assert check(name, steps, {**SD, "prediction_type": prediction}, schedule) <= BOUND


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(name, prediction):
    """Euler starts at sigma 4096 here, and diffusers holds x = 4096 x_T in float32: one rounding is
    2^-24 x 4096 = 2.4e-4, which a first step that ends at a small sigma lays bare. `test_who_is_right` shows
    that the difference is theirs."""
    for steps in STEPS:
        bound = 5e-4 if name == "euler" and steps <= 2 else BOUND
        assert check(name, steps, {**ZERO_SNR, "prediction_type": prediction}, None) <= bound


@pytest.mark.parametrize("steps", [1, 2])
def test_who_is_right(steps):
    """Where the two differ most, sdjax's float32 is ten times closer to step-by-step float64."""
    exact = reference.euler(ZERO_SNR, steps, lambda x, t: toy(np, x, t), X_T.astype(np.float64))
    ours = difference(sdjax_run(plan("euler", steps, ZERO_SNR)), exact)
    theirs = difference(diffusers_run(CLASSES["euler"], steps, ZERO_SNR)[1], exact)
    assert ours < 1e-5 and ours < theirs / 10


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SPACINGS)
def test_ddim_with_fresh_noise(eta, schedule):
    for steps in STEPS:
        noise = draws(steps).astype(np.float32) if eta else None
        assert check("ddim", steps, SD, schedule, eta=eta, noise=noise) <= BOUND


@pytest.mark.parametrize("name", list(CLASSES))
def test_class_defaults_and_other_options(name):
    """Missing keys take the class's defaults; another class's keys are ignored; ddim clips by default."""
    bare = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": True,
    }
    configs = [
        bare,
        {**bare, "beta_schedule": "squaredcos_cap_v2"},
        {**SD, "beta_schedule": "linear", "set_alpha_to_one": True},
        {**SD, "clip_sample": True, "clip_sample_range": 0.7},
        {**SD, "final_sigmas_type": "sigma_min"},
        {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {**SD, "lower_order_final": False, "euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {**SD, "lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_type": "heun"},
        {**SD, "trained_betas": list(np.linspace(1e-4, 0.015, 500)), "num_train_timesteps": 500},
        {
            **SD,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "linspace",
        },
    ]
    if name == "pndm":  # diffusers' does not know rescale_betas_zero_snr, which is the network's own
        del configs[-1]
    for config, steps in itertools.product(configs, (3, 16)):
        if name == "dpmpp_2m" and config.get("beta_schedule") == "squaredcos_cap_v2":
            config = {**config, "lambda_min_clipped": -5.1}
        assert check(name, steps, config, None) <= 2 * BOUND


def main():
    """Print the largest difference per sampler and where it lies."""
    jax.config.update("jax_platforms", "cpu")
    for name in CLASSES:
        rows = []
        for (n, schedule, prediction), steps in itertools.product(cases(), STEPS):
            if n == name:
                rows.append(
                    (
                        check(name, steps, {**SD, "prediction_type": prediction}, schedule),
                        steps,
                        schedule,
                        prediction,
                    )
                )
        if name != "pndm":
            for prediction, steps in itertools.product(("v_prediction", "sample"), STEPS):
                error = check(name, steps, {**ZERO_SNR, "prediction_type": prediction}, None)
                rows.append((error, steps, "zero SNR", prediction))
        for error, *where in sorted(rows, reverse=True)[:4]:
            print(f"{name:9s} {error:.1e}", *where)


if __name__ == "__main__":
    main()
