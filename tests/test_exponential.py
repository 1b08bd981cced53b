"""The exponential integrators where no installable package can be asked: their integrals, orders, identities, errors.

Against diffusers and k-diffusion: `tests/parity/test_dpm_family.py`.
"""

import functools

import jax
import numpy as np
import pytest
from scipy.integrate import quad

from sdjax.diffusion import scan, solvers
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.solvers import exponential
from tests import reference_dpm
from tests.reference import SD, SHAPE, draws
from tests.test_scan import X_T, error, fine_levels, in_float64, mixture, numpy_model

STEPS = (1, 2, 3, 7, 20)
SCHEDULES = ("leading", "trailing", "linspace", "karras")
CONFIGS = [{**SD, "prediction_type": p} for p in ("epsilon", "v_prediction", "sample")]


def own(config, schedule):
    """The config of `schedule`, for the reference."""
    return {**config, **({"use_karras_sigmas": True} if schedule == "karras" else {"timestep_spacing": schedule})}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_res_multistep_equals_its_paper(schedule):
    """To 1e-10 in float64, every integral by quadrature."""
    for config in CONFIGS:
        for steps in STEPS:
            expected = reference_dpm.res_multistep(own(config, schedule), steps, numpy_model, X_T)
            assert error(in_float64(plan("res_multistep", steps, config, schedule)), expected) <= 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_er_sde_equals_its_paper(schedule, stages):
    """To 1e-10 in float64 by the same rectangles; what these lose against the exact integrals is below 2e-3."""
    for config in CONFIGS:
        for steps in STEPS:
            noise = draws(steps)
            ours = in_float64(plan("er_sde", steps, config, schedule, max_stage=stages), noise)
            follow = functools.partial(
                reference_dpm.er_sde, own(config, schedule), steps, numpy_model, X_T, noise, stages
            )
            assert error(ours, follow()) <= 1e-10
            if steps == 20 and config is CONFIGS[0]:
                assert error(ours, follow(points=None)) <= (1e-6 if stages == 1 else 2e-3)


def test_er_sde_of_a_noise_scale_of_ones_own():
    """phi(s) = s renews nothing and is the ODE; s^2 is ancestral sampling. Stage 1 is then Euler's step."""
    ode = plan("er_sde", 9, SD, "karras", max_stage=1, noise_scaler=lambda s: s)
    assert ode.draws == 0 and error(in_float64(ode), in_float64(plan("euler", 9, SD, "karras"))) <= 1e-12
    sde, noise = plan("er_sde", 9, SD, "karras", max_stage=1, noise_scaler=lambda s: s * s), draws(9)
    assert error(in_float64(sde, noise), in_float64(plan("euler_ancestral", 9, SD, "karras"), noise)) <= 1e-12


@pytest.mark.parametrize("z", [-40.0, -3.0, -1.0, -0.999, -1e-3, -1e-9, 1e-9, 1e-3, 0.999, 1.0, 3.0, 12.0])
def test_moments(z):
    """Equation 4 of `exponential` against quadrature, on both sides of the switch to the series."""
    for k, value in enumerate(exponential.moments(z, 4)):
        expected = -z * quad(lambda s, k=k: np.exp(z * (1 - s)) * s**k, 0, 1, epsabs=0, epsrel=1e-13)[0]
        assert value == pytest.approx(expected, rel=1e-10)


WHOLE = {"lower_order_final": False}
ORDERS = {
    "dpm_solver": {1: 1, 2: 2, 3: 2},
    "dpmpp_2s": {1: 1, 2: 2, 3: 3},
    "unipc": {1: 2, 2: 3, 3: 4},
    "deis": {1: 1, 2: 2},
}
CASES = [
    (functools.partial(getattr(solvers, name), solver_order=p, **({} if name == "dpmpp_2s" else WHOLE)), order)
    for name, orders in ORDERS.items()
    for p, order in orders.items()
] + [
    (functools.partial(solvers.dpmpp_2s, solver_order=3, solver_type="heun"), 3),
    (functools.partial(solvers.dpmpp_3m, **WHOLE), 2),
    (functools.partial(solvers.dpmpp_2m_sde, eta=0.0, **WHOLE), 2),
    (functools.partial(solvers.unipc, predict_x0=False, solver_type="bh1", **WHOLE), 3),
    (functools.partial(solvers.unipc, disable_corrector=range(1000), **WHOLE), 2),
    (functools.partial(solvers.sa_solver, tau_func=lambda t: 0.0, **WHOLE), 2),
    (functools.partial(solvers.sa_solver, predictor_order=2, corrector_order=3, tau_func=lambda t: 0.0, **WHOLE), 3),
    (solvers.res_multistep, 2),
    (functools.partial(solvers.er_sde, max_stage=1, noise_scaler=lambda s: s), 1),
]


def name_of(case):
    if not isinstance(case, functools.partial):
        return getattr(case, "__name__", None)
    return case.func.__name__ + "".join(f"-{k}={v}" for k, v in case.keywords.items() if isinstance(v, int | str))


@functools.cache
def end(solver, steps):
    """The mixture's latents after a run; on no level is a last step infinite."""
    p = plan(Sampler(solver, fine_levels), steps, SD)
    return np.asarray(solve(p.table(512, np.float64), np.linspace(-2, 2, 9))) / p.alpha[-1]


solve = jax.jit(lambda table, x: scan.run(table, mixture, x))
FINEST = functools.partial(solvers.unipc, solver_order=3, **WHOLE)


@pytest.mark.parametrize(("solver", "order"), CASES, ids=name_of)
def test_order_of_convergence(solver, order):
    """On a mixture of two Gaussians the error falls with the step count to the order claimed.

    3M and third-order DPM-Solver are of second order: see `solvers.dpmpp_3m`. DEIS of order 3 is left out, because
    its first step, of order 1, is what remains of its error at many steps.
    """
    with jax.enable_x64(True):
        truth = end(FINEST, 512)
        errors = [np.abs(end(solver, n) - truth).max() for n in (96, 192)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2), errors


def test_what_is_the_same():
    """Methods that papers derive apart and that coincide: their matrices to 1e-12."""
    noisy = {**SD, "final_sigmas_type": "sigma_min"}
    for steps in (1, 5, 20):
        same = [
            (plan("deis", steps, noisy), plan("dpm_solver", steps, noisy, solver_type="heun")),
            (plan("deis", steps, noisy, solver_order=1), plan("dpm_solver", steps, noisy, solver_order=1)),
            (plan("dpmpp_2m_sde", steps, SD, eta=0.0), plan("dpmpp_2m", steps, SD)),
            (
                plan("unipc", steps, noisy, solver_type="bh1", **WHOLE),
                plan("sa_solver", steps, noisy, corrector_order=3, tau_func=lambda t: 0.0, **WHOLE),
            ),
        ]  # fmt: skip
        for one, other in same:
            np.testing.assert_allclose(one.weights, other.weights, rtol=0, atol=1e-12 * abs(one.weights).max())


def test_too_few_steps_lower_the_order():
    """As in diffusers: one step is of first order whatever was asked for."""
    noisy = {**SD, "final_sigmas_type": "sigma_min"}
    first = plan("dpm_solver", 1, noisy, "trailing", solver_order=1).weights
    for name in ("dpm_solver", "deis", "dpmpp_2s", "unipc"):
        np.testing.assert_allclose(plan(name, 1, noisy, "trailing", solver_order=3).weights[-1], first[-1], atol=1e-12)


NOISY = {"final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("dpm_solver", {"final_sigmas_type": "zero"}, {}, "final_sigmas_type to 'sigma_min'"),
        ("unipc", {}, {"predict_x0": False}, "final_sigmas_type to 'sigma_min'"),
        ("unipc", {}, {"lower_order_final": False}, "lower_order_final to true"),
        ("dpm_solver", NOISY, {"solver_order": 4}, "solver_order must be a whole number in 1 .. 3, not 4"),
        ("unipc", {"solver_order": 0}, {}, "solver_order must be a whole number in 1 .. 3, not 0"),
        ("sa_solver", {}, {"predictor_order": 5}, "predictor_order must be a whole number in 1 .. 4"),
        ("sa_solver", {}, {"tau_func": lambda t: -1.0}, "what tau_func gives at timestep .* must be a number from 0"),
        ("dpmpp_2m", {"solver_type": "trapezoid"}, {}, "solver_type must be 'midpoint' or 'heun'"),
        ("dpmpp_2m_sde", {}, {"eta": -0.5}, "eta must be a number from 0"),
        ("er_sde", {}, {"noise_scaler": lambda s: s**0.5}, "must not fall"),
        ("er_sde", {}, {"max_stage": 4}, "max_stage"),
    ],
)
def test_bad_input(name, config, options, message):
    with pytest.raises(ValueError, match=message):
        plan(name, 5, {**SD, **config}, **options)


def test_shapes_of_draws():
    """Noise is drawn where its weight is not zero and nowhere else."""
    assert plan("dpmpp_2m_sde", 8, SD).draws == 7
    assert plan("dpmpp_2m_sde", 8, SD, eta=0.0).draws == 0
    told = plan("sa_solver", 20, SD).timesteps
    assert plan("sa_solver", 20, SD).draws == np.sum((told >= 200) & (told <= 800))
    assert draws(3).shape == (3, *SHAPE)
