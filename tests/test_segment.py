"""Parts of a run: which steps they keep, and that one after the other they are the run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.config.presets import PRESETS
from sdjax.diffusion import scan
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests.reference import SHAPE, toy

SDXL = PRESETS["sdxl"].scheduler
X_T = np.random.default_rng(0).standard_normal(SHAPE)
SINGLE = ("ddim", "euler", "heun", "dpm2")
# With noise: the draws of the parts after each other are the run's.
RENEWING = {
    "ddim": {"eta": 1.0},
    "ddpm": {},
    "euler": {"s_churn": 5.0},
    "heun": {"s_churn": 5.0},
    "euler_ancestral": {},
    "dpm2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {},
    "lcm": {},
    "tcd": {},
}
OWN_LEVELS = ("restart", "dpm_fast")
# Orders that would fall at the end of a run, of the classes that have these keys.
HIGH = {
    "solver_order": 3,
    "predictor_order": 4,
    "corrector_order": 4,
    "euler_at_final": True,
    "lower_order_final": True,
}


def networks(x, t):
    """The nonlinear toy, and a linear one."""
    return toy(jnp, x, t), 0.3 * x[..., [1, 2, 0]] - 0.1 * x + t / 1000.0


run = {
    kind: jax.jit(lambda table, x, noise, kind=kind: scan.run(table, lambda x, t: networks(x, t)[kind], x, None, noise))
    for kind in (0, 1)
}


def follow(p, x, noise, kind=0):
    padded = np.concatenate([noise, np.zeros((128 - len(noise), *SHAPE))])
    return np.asarray(run[kind](p.table(128, np.float64), x, padded))


def config_for(name):
    """A config that the sampler can use: dpm_solver cannot end clean."""
    return {**SDXL, "final_sigmas_type": "sigma_min"} if name == "dpm_solver" else SDXL


def parts(name, steps, share, *args, **options):
    """(whole, first part, second part)."""
    whole = plan(name, steps, *args, **options)
    first = plan(name, steps, *args, **options, denoising_end=share)
    return whole, first, plan(name, steps, *args, **options, denoising_start=share)


@pytest.mark.parametrize(("steps", "base", "refiner"), [(50, 40, 10), (25, 20, 5), (30, 23, 7)])
def test_the_usual_hand_off(steps, base, refiner):
    """At 0.8 of SDXL's schedule, as counted in diffusers."""
    whole, first, second = parts("euler", steps, 0.8, SDXL)
    assert (first.evaluations, second.evaluations) == (base, refiner)
    assert first.timesteps.min() >= 200 > second.timesteps.max()
    np.testing.assert_array_equal(np.append(first.timesteps, second.timesteps), whole.timesteps)
    assert (first.alpha[-1], first.sigma[-1]) == (second.start.alpha, second.start.sigma)
    assert second.weights[0, 0] == 1 and first.alpha[-1] ** 2 + first.sigma[-1] ** 2 == pytest.approx(1, abs=1e-15)
    assert (second.alpha[-1], second.sigma[-1]) == (1, 0) and first.steps == second.steps == steps


def test_the_levels_handed_over():
    """The 181st training level, from the betas themselves."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.prod(1 - betas[:182])
    for name in ("euler", "ddim", "heun", "lms"):
        second = plan(name, 50, SDXL, denoising_start=0.8)
        assert (second.start.alpha, second.start.sigma) == pytest.approx((signal**0.5, (1 - signal) ** 0.5), rel=1e-12)
        assert second.start.t == second.timesteps[0] == 181


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("name", SINGLE)
def test_parts_in_turn_are_the_run(name, kind):
    none = np.zeros((0, *SHAPE))
    with jax.enable_x64(True):
        for schedule in ("leading", "trailing", "linspace", "karras", "exponential"):
            for steps, share in ((20, 0.8), (20, 0.35), (7, 0.5), (2, 0.5)):
                whole, first, second = parts(name, steps, share, SDXL, schedule)
                expected = follow(whole, X_T, none, kind)
                got = follow(second, follow(first, X_T, none, kind), none, kind)
                assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max(), (schedule, steps, share)


@pytest.mark.parametrize("name", RENEWING)
def test_parts_in_turn_are_the_run_with_its_draws(name):
    noise = np.random.default_rng(1).standard_normal((64, *SHAPE))
    with jax.enable_x64(True):
        for schedule, steps, share in (("trailing", 20, 0.8), ("trailing", 9, 0.35), ("karras", 20, 0.6)):
            whole, first, second = parts(name, steps, share, SDXL, schedule, **RENEWING[name])
            assert whole.draws == first.draws + second.draws > 0
            expected = follow(whole, X_T, noise[: whole.draws])
            middle = follow(first, X_T, noise[: first.draws])
            got = follow(second, middle, noise[first.draws : whole.draws])
            assert np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max(), (schedule, steps, share)


def test_three_parts():
    whole, first, _ = parts("euler", 30, 0.3, SDXL)
    second = plan("euler", 30, SDXL, denoising_start=0.3, denoising_end=0.7)
    third = plan("euler", 30, SDXL, denoising_start=0.7)
    assert first.evaluations + second.evaluations + third.evaluations == 30
    none = np.zeros((0, *SHAPE))
    with jax.enable_x64(True):
        x = X_T
        for one in (first, second, third):
            x = follow(one, x, none)
        np.testing.assert_allclose(x, follow(whole, X_T, none), rtol=0, atol=1e-12 * np.abs(x).max())


@pytest.mark.parametrize("orders", [{}, HIGH])
@pytest.mark.parametrize("steps", [10, 40])  # below and above what DPM-Solver calls few steps
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in (*OWN_LEVELS, "ddim_inverse")])
def test_a_first_part_is_the_runs_beginning(name, steps, orders):
    """Row by row, orders included; its result is what the network would see next, at the network's scale."""
    config = {**config_for(name), **orders}
    for share in (0.6, 0.8):
        whole = plan(name, steps, config, "trailing")
        first = plan(name, steps, config, "trailing", denoising_end=share)
        n = first.rows - 1
        columns = [*range(n + 1), *range(whole.rows, whole.rows + first.draws)]
        np.testing.assert_allclose(first.weights, whole.weights[: n + 1, columns], rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(first.row_timesteps, whole.row_timesteps[:n])
        np.testing.assert_allclose(first.alpha[-1], whole.alpha[n], rtol=1e-12)


# Whose levels these end at, where it is not euler's.
LEFT = {"pndm": "ddim", "pndm_prk": "ddim", **{name: name for name in ("deis", "sa_solver", "dpm_solver")}}
FRESH = [name for name in SAMPLERS if name not in ("ddim_inverse", "lcm", "tcd")]


@pytest.mark.parametrize("name", FRESH)
def test_a_second_part_is_a_run_of_its_own(name):
    """The sampler begun afresh, past predictions, warm-up and groups too, on the levels that are left."""
    config = {**config_for(name), "set_alpha_to_one": True}
    schedule = "karras" if name.startswith("pndm") else "trailing"
    left = plan(LEFT.get(name, "euler"), 40, config, schedule, denoising_start=0.5)
    ve = left.sigma / left.alpha
    second = plan(name, 40, config, schedule, denoising_start=0.5)
    fresh = plan(name, None, config, sigmas=[*ve[:-1][left.evaluate], ve[-1]])
    own_scale = np.append(fresh.weights[0, 0], np.ones(fresh.weights.shape[1] - 1))  # of x_T
    np.testing.assert_allclose(second.weights, fresh.weights / own_scale, rtol=0, atol=1e-9)
    np.testing.assert_allclose(second.timesteps, fresh.timesteps, atol=1e-6)


@pytest.mark.parametrize("preset", ["diffusers", "a1111", "comfy"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_constant_picture(name, preset):
    """Every sampler takes c from alpha c + sigma e at `start` to alpha' c + sigma' e of unit variance at the end."""
    made = 0
    for start, end, schedule in (
        (0.2, 0.7, None),
        (0.5, None, "karras"),
        (None, 0.35, "exponential"),
        (0.1, 0.9, None),
    ):
        try:
            p = plan(name, 24, config_for(name), schedule, preset=preset, denoising_start=start, denoising_end=end)
        except ValueError as error:
            assert preset != "diffusers" and ("A1111 has no" in str(error) or "ends clean" in str(error))
            continue
        made += 1
        if p.inexact:
            assert name in ("lcm", "ddim_inverse")
            continue
        n, weights = p.rows - 1, p.weights[-1]
        begin = (p.start.alpha, p.start.sigma) if start else (p.alpha[0] / weights[0], 0)
        if start:
            assert weights[0] * begin[0] + weights[1 : n + 1].sum() == pytest.approx(p.alpha[-1], abs=1e-9)
            variance = (weights[0] * begin[1]) ** 2 + (weights[n + 1 :] ** 2).sum()
            assert variance == pytest.approx(p.sigma[-1] ** 2, abs=1e-9)
        if end:
            assert p.alpha[-1] ** 2 + p.sigma[-1] ** 2 == pytest.approx(1, abs=1e-12) and 0.1 < p.sigma[-1] < 1
    assert made == 4 or preset != "diffusers"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.floats(0.001, 0.999),
    st.sampled_from(["leading", "trailing", "linspace", "karras", None]),
    st.sampled_from(["euler", "ddim", "dpmpp_2m", "unipc"]),
)
def test_every_step_is_in_one_part(steps, share, schedule, name):
    """Told by the timesteps of the whole run; a part without any says which share would have one."""
    whole = plan(name, steps, SDXL, schedule)
    cutoff = round(1000 - share * 1000)
    told = {
        "denoising_end": whole.timesteps[whole.timesteps.astype(np.float32) >= cutoff],
        "denoising_start": whole.timesteps[whole.timesteps.astype(np.float32) < cutoff],
    }
    for side, expected in told.items():
        if len(expected):
            np.testing.assert_array_equal(plan(name, steps, SDXL, schedule, **{side: share}).timesteps, expected)
            continue
        with pytest.raises(ValueError, match="no step is left") as caught:
            plan(name, steps, SDXL, schedule, **{side: share})
        for named, nearest in re.findall(r"(denoising_\w+) (?:up to|from) ([\d.e-]+)", str(caught.value)):
            assert plan(name, steps, SDXL, schedule, **{named: float(nearest)}).evaluations >= 1


def test_timesteps_are_compared_as_diffusers_has_them():
    """In float64 this "linspace" has 332.99999999999994 where float32, and so diffusers, has 333."""
    whole = plan("euler", 124, SDXL, "linspace").timesteps
    assert whole[82] < 333 and np.float32(whole[82]) == 333
    assert plan("euler", 124, SDXL, "linspace", denoising_end=0.667).evaluations == 83


def test_upwards():
    """DDIM's inverse of a part: from the end of that part to its start."""
    up = plan("ddim_inverse", 20, SDXL, denoising_start=0.4)
    down = plan("ddim", 20, SDXL, denoising_start=0.4)
    assert (up.alpha[-1], up.sigma[-1]) == (down.start.alpha, down.start.sigma)
    np.testing.assert_array_equal(up.timesteps, down.timesteps[::-1])
    assert (up.start.alpha, up.start.sigma) == (down.alpha[-1], down.sigma[-1])


def test_an_end_behind_the_last_step_leaves_the_run_whole():
    whole, cut = plan("euler", 20, SDXL), plan("euler", 20, SDXL, denoising_end=0.999)
    np.testing.assert_array_equal(cut.weights, whole.weights)
    noisy = {**SDXL, "final_sigmas_type": "sigma_min"}
    for name in ("euler", "dpmpp_2m", "dpm_fast", "unipc"):
        cut = plan(name, 20, noisy, denoising_end=0.999)
        assert cut.alpha[-1] ** 2 + cut.sigma[-1] ** 2 == pytest.approx(1, abs=1e-12) and cut.sigma[-1] > 0.02


def test_unipc_counts_the_steps_of_the_whole_run():
    """Step 20 of 40 is the first of the second half."""
    chosen = {"denoising_start": 0.5, "solver_order": 3}
    second, corrected = (plan("unipc", 40, SDXL, "trailing", **chosen, disable_corrector=d) for d in ((20,), (0,)))
    ve = corrected.sigma / corrected.alpha
    fresh = plan("unipc", None, SDXL, sigmas=[*ve[:-1], 0], solver_order=3, disable_corrector=(0,))
    np.testing.assert_allclose(second.weights, fresh.weights, rtol=0, atol=1e-9)
    assert np.abs(corrected.weights - fresh.weights).max() > 1e-3


def test_orders_at_the_end_of_a_short_part():
    """The whole run's number of steps tells whether they fall: the last step but one of 8 mixes three predictions."""
    for steps, mixed in ((40, 3), (10, 2)):
        p = plan("dpmpp_3m", steps, SDXL, "trailing", denoising_start=1 - 8 / steps + 1e-4)
        assert p.evaluations == 8
        step = p.weights[7] - p.sigma[7] / p.sigma[6] * p.weights[6]
        assert (abs(step) > 1e-9).sum() == mixed


def test_churn_is_shared_among_the_whole_run():
    whole, first, second = parts("euler", 10, 0.5, SDXL, "trailing", s_churn=2.0)
    np.testing.assert_allclose(np.append(first.sigma[:-1], second.sigma[:-1]), whole.sigma[:-1], rtol=1e-12)
    assert second.start.sigma < second.sigma[0] and second.start.t == 499


def test_a_solver_that_ends_on_another_scale():
    def forgetful(tape, schedule):
        x = tape.x_T / schedule.steps[0][0].alpha
        for here, there in schedule.steps:
            d = tape.denoise(here.alpha * x, here)
            x = d + there.ve / here.ve * (x - d)
        return x

    plan(forgetful, 10, SDXL)
    with pytest.raises(ValueError, match="where its level says .* x must be alpha x0 \\+ sigma e there"):
        plan(forgetful, 10, SDXL, denoising_end=0.5)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"denoising_start": 0.0}, "denoising_start must be a number between 0 and 1, .* not 0.0; None leaves"),
        ({"denoising_end": 1}, "denoising_end must be a number between 0 and 1, .* not 1;"),
        ({"denoising_end": float("nan")}, "not nan"),
        ({"denoising_start": "0.8"}, "not '0.8'"),
        ({"denoising_end": True}, "not True"),
        ({"denoising_start": 0.8, "denoising_end": 0.8}, "denoising_start 0.8 must be less than denoising_end 0.8"),
        (
            {"denoising_start": 0.9995},
            r"0.9995 \(< 0\): no step is left of 10, which start at timesteps 901, 801, 701, 601, \.\., 301, 201, 101, "
            "1; take denoising_start up to 0.998 or more steps",
        ),
        ({"denoising_end": 0.05}, r"denoising_end 0.05 \(>= 950\).*; take denoising_end from 0.099 or more steps"),
        (
            {"denoising_start": 0.72, "denoising_end": 0.75},
            r"0.72 \(< 280\) and denoising_end 0.75 \(>= 250\): .*; take denoising_start up to 0.698 or denoising_end "
            "from 0.799 or more steps",
        ),
    ],
)
def test_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        plan("euler", 10, SDXL, **chosen)


def test_parts_too_short_for_a_sampler():
    with pytest.raises(ValueError, match="pndm_prk needs at least 4 steps.*not 2.*or pndm"):
        plan("pndm_prk", 10, SDXL, denoising_start=0.8)
    with pytest.raises(ValueError, match="dpm_fast goes from one noise level to a smaller one"):
        plan("dpm_fast", 10, SDXL, denoising_start=0.9)


@pytest.mark.parametrize("strength, steps", [(0.2, 4), (0.5, 10), (0.6, 12), (0.99, 19), (1.0, 20), (0.29, 5)])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "heun", "dpm2"])
def test_strength_is_the_last_of_the_steps(name, strength, steps):
    """int(N s), as floats have it: 20 x 0.29 is 5.8, and 20 x 0.6 is 12."""
    whole, cut = plan(name, 20, SDXL), plan(name, 20, SDXL, strength=strength)
    starts = cut.start
    np.testing.assert_array_equal(cut.timesteps, whole.timesteps[len(whole.timesteps) - len(cut.timesteps) :])
    assert starts.t == plan("ddim", 20, SDXL).timesteps[20 - steps] if name == "ddim" else True
    assert np.isclose(cut.weights[0, 0], 1.0)  # x_T is what the network sees at the first level
    assert len(np.unique(cut.timesteps)) >= steps


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_no_step_is_left(name):
    """At strength 0, or where it is less than a step, a run gives back what it was given, and asks nothing."""
    for strength in (0.0, 0.04):
        p = plan(name, 20, SDXL, strength=strength)
        assert p.evaluations == 0
        np.testing.assert_array_equal(follow(p, X_T, np.zeros((0, *SHAPE))), X_T.astype(np.float32))


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), True, "0.5", None])
def test_strength_out_of_range(value):
    if value is None:
        with pytest.raises(ValueError, match="give one of them"):
            plan("ddim", 20, SDXL, strength=0.5, denoising_start=0.5)
        return
    with pytest.raises(ValueError, match="strength must be a number from 0"):
        plan("ddim", 20, SDXL, strength=value)


def test_strength_that_ends_before_it_begins():
    with pytest.raises(ValueError, match="strength 0.2 .*a larger strength"):
        plan("ddim", 20, SDXL, strength=0.2, denoising_end=0.5)
