"""What a caller may choose over a config: levels of their own, rho, and every mistake in them."""

import warnings

import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests.reference import SD

LEVELS = [14.6, 5.0, 1.3, 0.2]


def ve(p):
    return p.sigma / p.alpha


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim"])
def test_own_sigmas(name):
    """Visited as given; N + 1 levels make N steps; the network is told the timestep between training levels."""
    p = plan(name, None, SD, sigmas=[*LEVELS, 0.0])
    np.testing.assert_allclose(ve(p)[:-1][p.evaluate], LEVELS, rtol=1e-12)
    assert p.schedule == "custom" and p.steps == 4 and p.sigma[-1] == 0.0
    np.testing.assert_allclose(p.timesteps, plan("euler", 4, SD, sigmas=np.array([*LEVELS, 0])).timesteps)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_own_sigmas_that_end_noisy(name):
    """As in k-diffusion, a run ends where the list ends."""
    p = plan(name, 3, SD, sigmas=LEVELS)
    assert p.evaluations == 3 and ve(p)[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim"])
def test_own_timesteps(name):
    """The config's own training levels, then clean; karras in the config is out of force."""
    p = plan(name, None, {**SD, "use_karras_sigmas": True}, timesteps=[999, 601, 24])
    np.testing.assert_array_equal(p.timesteps, [999, 601, 24])
    np.testing.assert_allclose(ve(p)[:-1][p.evaluate][[0]], [14.614648], rtol=2e-5)
    assert p.schedule == "custom" and p.evaluations == 3 and p.sigma[-1] == 0.0


def test_rho():
    """A larger rho has more levels at the noisy end of polyexponential, and fewer there in karras."""
    for schedule, default in (("karras", 7.0), ("polyexponential", 1.0)):
        first, same, other = (ve(plan("euler", 9, SD, schedule, rho=rho)) for rho in (None, default, 2.5))
        np.testing.assert_array_equal(first, same)
        assert abs(first - other).max() > 0.1
        np.testing.assert_allclose(first[[0, -2]], other[[0, -2]], rtol=1e-9)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"sigmas": [5.0, 5.0, 0.0]}, "sigmas must decrease"),
        ({"sigmas": [5.0, 6.0, 0.0]}, "sigmas must decrease"),
        ({"sigmas": [5.0, -1.0]}, "end at 0 or above"),
        ({"sigmas": [5.0, float("nan")]}, "finite numbers"),
        ({"sigmas": [float("inf"), 1.0]}, "finite numbers"),
        ({"sigmas": [5.0]}, "2 levels or more"),
        ({"sigmas": []}, "finite numbers|2 levels or more"),
        ({"sigmas": ["a", "b"]}, "finite numbers"),
        ({"sigmas": [[5.0, 1.0]]}, "list of finite numbers"),
        ({"sigmas": [5.0, 0.0], "steps": 2}, "make 1 steps, not 2"),
        ({"sigmas": [5.0, 0.0], "schedule": "karras"}, "schedule and sigmas"),
        ({"sigmas": [5.0, 0.0], "timesteps": [3]}, "sigmas and timesteps"),
        ({"sigmas": [5.0, 1.0], "sampler": "ddim"}, "end them with 0"),
        ({"timesteps": [1000, 5]}, "lie in 0 .. 999"),
        ({"timesteps": [5, -1]}, "lie in 0 .. 999"),
        ({"timesteps": [5, 5]}, "must decrease"),
        ({"timesteps": []}, "lie in 0"),
        ({"timesteps": 5}, "list of finite numbers"),
        ({"schedule": "exponential", "rho": 3.0, "steps": 5}, "'exponential' has no rho; karras and polyexponential"),
        ({"rho": 3.0, "steps": 5}, "'leading' has no rho"),
        ({"schedule": "karras", "rho": 0.0, "steps": 5}, "rho must be a number from 0.1 to 1000, not 0.0"),
        ({"preset": "automatic1111", "steps": 5}, "nearest: 'a1111'"),
        ({}, "whole number in 1 .. 1000, not None"),
        ({"steps": True}, "not True"),
        ({"steps": "20"}, "not '20'"),
        ({"steps": float("nan")}, "not nan"),
    ],
)
def test_mistakes(chosen, message):
    arguments = {"sampler": "euler", "steps": None, "scheduler": SD, **chosen}
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        (
            "ddim",
            {"use_karras_sigmas": True},
            "use_karras_sigmas=True, which sampler ddim .*schedule='karras' chooses it",
        ),
        (
            "pndm",
            {"use_beta_sigmas": True, "sigma_min": 0.1},
            "use_beta_sigmas=True and sigma_min=0.1, .*'beta' chooses",
        ),
        ("euler", {"use_lu_lambdas": True}, "use_lu_lambdas=True, .*schedule='lu' chooses it"),
        ("euler_ancestral", {"use_exponential_sigmas": True}, "schedule='exponential' chooses it"),
        ("heun", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min', which sampler heun does not read"),
        ("dpmpp_2s", {"timestep_spacing": "trailing"}, "timestep_spacing='trailing', .*schedule='trailing' chooses it"),
        ("euler", {"thresholding": True, "clip_sample": True}, "thresholding=True and clip_sample=True, which"),
        ("dpmpp_2m", {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ("ddim", {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    ],
)
def test_what_a_sampler_does_not_read_is_said(name, config, said):
    """Once, at the caller's line; a config that asks nothing else, or whose wish is chosen, is silent."""
    with pytest.warns(UserWarning, match=said) as caught:
        plan(name, 8, {**SD, **config})
    assert [warning.filename for warning in caught] == [__file__]


def test_what_is_read_or_chosen_otherwise_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (name for name in SAMPLERS if name != "dpmpp_2s"):
            plan(name, 8, {**SD, "final_sigmas_type": "sigma_min"} if name == "dpm_solver" else SD)
        for name in ("ddim", "euler_ancestral"):
            plan(name, 8, {**SD, "use_karras_sigmas": True, "sigma_min": 0.1}, "karras")
            plan(name, None, {**SD, "use_karras_sigmas": True}, timesteps=[999, 500])
        plan("dpmpp_2m", 8, {**SD, "use_lu_lambdas": True, "thresholding": True, "solver_type": "heun"})
        plan("heun", 8, {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing"}, preset="comfy")
        plan("euler", 8, {**SD, "clip_sample": True, "_use_default_values": ["clip_sample"]})


@pytest.mark.parametrize(
    "config",
    [
        {"use_flow_sigmas": True},
        {"use_dynamic_shifting": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"timestep_type": "continuous"},
    ],
    ids=str,
)
def test_networks_of_another_kind_are_refused_by_every_sampler(config):
    """Not by those alone whose class has the key."""
    for name in SAMPLERS:
        with pytest.raises(ValueError, match="scheduler config: .*(not supported|not 'continuous')"):
            plan(name, 8, {**SD, **config})
