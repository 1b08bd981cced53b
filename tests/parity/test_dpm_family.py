"""The exponential integrators against diffusers' schedulers made from the same config, and against k-diffusion.

diffusers' sigmas are float32. Its UniPC, DEIS and SA-Solver then also subtract float32 numbers that are nearly equal,
and lose up to 5e-3 at high orders and 50 steps; `DOUBLE` runs their own steps in float64 on their own float32 sigmas.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from sdjax.diffusion.plan import plan
from tests.parity.toy import BOUND, difference, diffusers_run, k_diffusion, k_run, sdjax_run, with_schedule
from tests.reference import SD, ZERO_SNR, draws

STEPS = (2, 3, 7, 14, 15, 20, 50)
FEW = (1, 2, 3, 5, 16)
SPACINGS = ("leading", "trailing", "linspace")
ALL = (*SPACINGS, "karras", "exponential", "beta")
NOISY_END = {"final_sigmas_type": "sigma_min"}
DPM = DPMSolverMultistepScheduler
# our name: (their class, what its config must say beside ours, its schedules)
PEERS = {
    "dpm_solver": (DPM, {"algorithm_type": "dpmsolver", **NOISY_END}, (*ALL, "lu")),
    "dpmpp_2m": (DPM, {}, (*ALL, "lu")),
    "dpmpp_3m": (DPM, {"solver_order": 3}, (*ALL, "lu")),
    "dpmpp_2m_sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}, (*ALL, "lu")),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {}, ("linspace", "karras", "exponential", "beta")),
    "unipc": (UniPCMultistepScheduler, {}, ALL),
    "deis": (DEISMultistepScheduler, {}, ALL),
    "sa_solver": (SASolverScheduler, {}, ALL),
}
DOUBLE = ("unipc", "deis", "sa_solver")
CASES = [(name, schedule) for name, (_, _, schedules) in PEERS.items() for schedule in schedules]


def middle(t):
    """diffusers' own tau, as a tensor: its torch.exp takes no number."""
    return torch.tensor(1.0 if 200 <= t <= 800 else 0.0)


def check(name, steps, config, schedule=None, tau=middle, double=None, **options):
    """The difference of the latents, with the draws of every step given to both."""
    cls, extra, _ = PEERS[name]
    if name == "sa_solver":
        options["tau_func"] = lambda t: float(tau(t))
    ours = plan(name, steps, config, schedule, **options)
    scheduler = cls.from_config(with_schedule({**config, **extra}, schedule))
    if name == "sa_solver":
        scheduler.tau_func = tau
    noise = draws(steps)
    double = name in DOUBLE if double is None else double
    told, theirs = diffusers_run(scheduler, steps, noise=noise, double=double)
    np.testing.assert_array_equal(ours.timesteps, told)
    if name == "sa_solver":  # theirs draws in every step, ours where tau is not zero
        noise = noise[[i for i, t in enumerate(told) if tau(t) > 0 and i < steps - repeated(ours)]]
        assert ours.draws == len(noise)
    return difference(sdjax_run(ours, noise, double=double), theirs)


def repeated(the_plan):
    """1 where the last step goes nowhere."""
    return int(the_plan.sigma[-1] == the_plan.sigma[-2])


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_equal_to_diffusers(name, schedule):
    """Every schedule the class has, every prediction type, both ends, 2 .. 50 steps."""
    for steps, prediction in itertools.product(STEPS, ("epsilon", "v_prediction", "sample")):
        for end in ({}, NOISY_END) if name not in ("dpm_solver", "deis", "sa_solver") else ({},):
            error = check(name, steps, {**SD, **end, "prediction_type": prediction}, schedule)
            if name == "dpmpp_3m" and end and schedule not in SPACINGS and steps >= 15:
                assert np.isnan(error)  # theirs: its last step, which goes nowhere, divides by its length
            else:
                assert error <= BOUND, (steps, prediction, end)


@pytest.mark.parametrize("name", DOUBLE)
def test_equal_in_float32(name):
    """At the orders that the classes come with, float32 throughout is good enough."""
    for steps, schedule in itertools.product(STEPS, SPACINGS):
        assert check(name, steps, SD, schedule, double=False) <= BOUND, (steps, schedule)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(name, prediction):
    for steps in STEPS:
        assert check(name, steps, {**ZERO_SNR, "prediction_type": prediction}) <= BOUND, steps


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ["dpm_solver", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde"])
def test_multistep_options(name, solver_type, end):
    """Orders, lower orders at the end: in runs shorter than any order, and on both sides of 15 steps."""
    for order, lower, euler in itertools.product((1, 2, 3), (True, False), (True, False)):
        own = {"dpmpp_3m": 3, "dpm_solver": order}.get(name, 2)
        config = {**SD, "solver_type": solver_type, "final_sigmas_type": end, "solver_order": order}
        config |= {"lower_order_final": lower, "euler_at_final": euler}
        if own == order and (name, end) != ("dpm_solver", "zero"):
            for steps in (*FEW, 14, 15):
                assert check(name, steps, config) <= BOUND, (order, lower, euler, steps)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_singlestep_options(solver_type, end):
    """Its order list: every remainder of the steps by the order."""
    for order, lower, steps in itertools.product((1, 2, 3), (True, False), (*range(1, 9), 20, 21)):
        config = {**SD, "solver_type": solver_type, "final_sigmas_type": end, "solver_order": order}
        assert check("dpmpp_2s", steps, {**config, "lower_order_final": lower}) <= BOUND, (order, lower, steps)


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_options(solver_type, predict_x0):
    for order, lower, off, steps in itertools.product((1, 2, 3), (True, False), ((), (0, 2)), (*FEW, 20)):
        config = {**SD, **NOISY_END, "solver_type": solver_type, "solver_order": order, "predict_x0": predict_x0}
        config |= {"lower_order_final": lower, "disable_corrector": list(off)}
        assert check("unipc", steps, config) <= BOUND, (order, lower, off, steps)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_unipc_bh1_ending_clean(steps):
    """diffusers' bh1 is not a number at sigma zero (0 times infinity); its last step is bh2's, of first order."""
    config = {**SD, "solver_type": "bh1"}
    assert np.isnan(check("unipc", steps, config))
    noisy = plan("unipc", steps, {**config, **NOISY_END}).weights
    np.testing.assert_allclose(plan("unipc", steps, config).weights[:-1], noisy[:-1], atol=1e-12)


def test_deis_options():
    for order, lower, steps in itertools.product((1, 2, 3), (True, False), (*FEW, 14, 15, 50)):
        config = {**SD, "solver_order": order, "lower_order_final": lower}
        assert check("deis", steps, config) <= BOUND, (order, lower, steps)


@pytest.mark.parametrize("algorithm_type", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_options(tau, algorithm_type):
    for p, c, lower in itertools.product((1, 2, 3, 4), (1, 2, 3, 4), (True, False)):
        config = {**SD, "predictor_order": p, "corrector_order": c, "lower_order_final": lower}
        for steps in (3, 20):
            error = check(
                "sa_solver", steps, {**config, "algorithm_type": algorithm_type}, tau=lambda t: torch.tensor(tau)
            )
            assert error <= BOUND, (p, c, lower, steps)


@pytest.mark.parametrize("name", [name for name in PEERS if name != "dpmpp_2m"])
def test_dynamic_thresholding(name):
    """Half of the elements are beyond the quantile, and pulled in."""
    config = {**SD, "thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 1.5}
    for steps in (3, 16):
        assert check(name, steps, config) <= BOUND
        assert check(name, steps, {**config, **NOISY_END, "prediction_type": "v_prediction"}) <= BOUND


@pytest.mark.parametrize("name", list(PEERS))
def test_class_defaults(name):
    """A config of betas alone, cosine betas, and keys of other classes."""
    bare = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    configs = [
        bare,
        {**SD, "use_karras_sigmas": True},
        {**SD, "solver_type": "bh1" if name != "unipc" else "logrho"},
        {**SD, "sigma_min": 0.05, "sigma_max": 10.0, "use_karras_sigmas": True},
        {**SD, "trained_betas": list(np.linspace(1e-4, 0.015, 500)), "num_train_timesteps": 500},
    ]
    for config, steps in itertools.product(configs, (3, 16)):
        assert check(name, steps, config) <= BOUND, (config, steps)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpmpp_2m_sde_equal_to_k_diffusion(eta, solver_type):
    function = functools.partial(k_diffusion().sample_dpmpp_2m_sde, eta=eta, solver_type=solver_type)
    for steps, schedule in itertools.product((2, 7, 20, 50), SPACINGS):
        ours = plan("dpmpp_2m_sde", steps, SD, schedule, eta=eta, solver_type=solver_type, lower_order_final=False)
        noise = draws(steps)
        assert difference(sdjax_run(ours, noise), k_run(function, ours, SD, noise)) <= 2e-5


def main():
    """Print the largest difference per sampler at its defaults, and where it lies."""
    for name, (_, _, schedules) in PEERS.items():
        found = [
            (check(name, steps, {**SD, "prediction_type": prediction}, schedule), steps, schedule, prediction)
            for steps, schedule, prediction in itertools.product(
                STEPS, schedules, ("epsilon", "v_prediction", "sample")
            )
        ]
        for error, *where in sorted(found, reverse=True)[:2]:
            print(f"{name:12s} {error:.1e}", *where)


if __name__ == "__main__":
    main()
