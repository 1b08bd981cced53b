"""Numbers that no run can be made of: each is told in words, before anything is made of it."""

import math

import numpy as np
import pytest

from sdjax.core.short import short
from sdjax.diffusion.adaptive import dpm_adaptive
from sdjax.diffusion.bounds import as_float, check_number, check_whole
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests.reference import SD

BIG, HUGE = 10**400, 10**5000  # more than a float holds; more than Python writes out
NUMBERS = (BIG, -BIG, HUGE, math.nan, "x", [1], {}, True)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1e308, 1, 0], "from 1e-06 to 20000, but for a last 0, not 1e[+]308"),
        ([1, 5e-324, 0], "not 4.94066e-324"),
        ([BIG, 1, 0], "finite numbers, and holds a number of 1329 bits"),
        ([HUGE, 1, 0], "holds a number of 16610 bits"),
        ([math.nan, 1], "holds nan"),
        ([math.inf, 1, 0], "holds inf"),
        ([True, 0.5], "holds True"),
        ([1, "x"], "holds 'x'"),
        ([5, 5 - 1e-12, 0], "5.0 and 4.999999999999 are one level to float32"),
        ([1, 1, 0], "must decrease"),
        ([1, 2, 0], "must decrease"),
        ([1, -1], "end at 0 or above"),
        ([1], "2 levels or more"),
        ([], "2 levels or more"),
        ("12, 5, 0", "must be a list of finite numbers"),
        ({12: 5}, "must be a list of finite numbers"),
        (np.array(3.0), "must be a list of finite numbers"),
        (list(range(6000, 0, -1)), "holds 6000 levels; a run takes 4096 steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_levels_that_are_none(sigmas, message):
    with pytest.raises(ValueError, match=message):
        plan("euler", None, SD, sigmas=sigmas)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_farthest_levels(name):
    """From the noisiest to the finest that may be asked for, a plan is finite in float32, or is refused in words."""
    for sigmas in ([2e4, 1.0, 0.0], [2e4, 1e-6], [5.0, 1e-6, 0.0], [2e-6, 1e-6]):
        try:
            made = plan(name, None, SD, sigmas=sigmas)
        except ValueError as error:
            assert any(word in str(error) for word in ("end them with 0", "sigma 0", "steps")), error
            continue
        assert np.isfinite(made.table().d_weights).all() and np.isfinite(made.table().c_out).all()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].options])
def test_options_of_every_sampler(name):
    """No number, or one beyond floats: the option is named."""
    config = {**SD, "final_sigmas_type": "sigma_min"}
    for key, default in SAMPLERS[name].options.items():
        for value in NUMBERS:
            if type(value) is type(default) or (isinstance(default, tuple) and value == [1]):
                continue
            with pytest.raises(ValueError, match=key):
                plan(name, 8, config, **{key: value})


def test_rho_and_steps():
    for value in (*NUMBERS, 0, -1, 1e-9, 1e9, math.inf):
        with pytest.raises(ValueError, match="rho must be a number from 0.1 to 1000"):
            plan("euler", 20, SD, "karras", rho=value)
    for value in (*NUMBERS, 0, 1001, 2.5, 1e308):
        with pytest.raises(ValueError, match="steps must be a whole number in 1 .. 1000"):
            plan("euler", value, SD)


@pytest.mark.parametrize("key", ["strength", "denoising_start", "denoising_end"])
def test_shares_of_a_run(key):
    for value in NUMBERS:
        with pytest.raises(ValueError, match=f"{key} must be a number"):
            plan("euler", 20, SD, **{key: value})


@pytest.mark.parametrize(
    "key", ["beta_start", "beta_end", "steps_offset", "num_train_timesteps", "sigma_max", "clip_sample_range"]
)
def test_numbers_of_a_config(key):
    for value in NUMBERS:
        with pytest.raises(ValueError, match="scheduler config"):
            plan("heun" if key != "clip_sample_range" else "ddim", 8, {**SD, "clip_sample": True, key: value}, "karras")


def test_a_config_that_asks_for_too_many_levels():
    with pytest.raises(ValueError, match="num_train_timesteps must be a whole number in 1 .. 100000"):
        plan("euler", 8, {**SD, "num_train_timesteps": 10**9})
    assert plan("euler", 8, {**SD, "num_train_timesteps": 1000.0}).evaluations == 8
    with pytest.raises(ValueError, match="disable_corrector must be a whole number in 0 .. 4096, not 'x'"):
        plan("unipc", 8, SD, disable_corrector=["x"])
    with pytest.raises(ValueError, match="dynamic_thresholding_ratio must be a number from 0 to 1, not 5"):
        plan("ddim", 8, {**SD, "thresholding": True, "dynamic_thresholding_ratio": 5})
    with pytest.raises(ValueError, match="algorithm_type must be 'data_prediction' or"):
        plan("sa_solver", 8, {**SD, "algorithm_type": "data"})


@pytest.mark.parametrize("key", ["rtol", "eta", "h_init", "pcoeff", "sigma_min", "max_steps"])
def test_the_adaptive_solver(key):
    with pytest.raises(ValueError, match=key):
        dpm_adaptive(lambda x, t: x, np.zeros((1, 2)), SD, key=None, **{key: BIG})


def test_one_by_one():
    assert (check_number("a", np.float32(0.5)), check_whole("a", 3.0, 1, 4)) == (0.5, 3)
    assert math.isnan(as_float(BIG)) and math.isnan(as_float(np.bool(True))) and as_float(np.array(2)) == 2.0
    assert len(short("x" * 1000)) <= 80 and short(-HUGE) == "a number of 16610 bits"
