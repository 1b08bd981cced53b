"""The levels a run visits, against golden values taken from diffusers 0.42.1."""

import itertools

import numpy as np
import pytest

from sdjax.diffusion.a1111_comfy import NAMES, OWN_TIMESTEPS
from sdjax.diffusion.noise import Settings
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.sigmas import SIGMA_SCHEDULES
from sdjax.diffusion.spacing import (
    FLAGS,
    SCHEDULES,
    check_schedule,
    dpm_schedule,
    euler_schedule,
    kdpm2_schedule,
    lms_schedule,
    singlestep_schedule,
    unipc_schedule,
)
from tests.reference import SD, ZERO_SNR, clamped_sigmas


def ve(p):
    """Noise of unit signal at the rows that evaluate the network."""
    return (p.sigma[:-1] / p.alpha[:-1])[p.evaluate]


def test_pndm_stable_diffusion():
    p = plan("pndm", 50, SD)
    assert p.evaluations == 51 and p.draws == 0
    np.testing.assert_array_equal(p.timesteps[[0, 1, 2, 3, -2, -1]], [981, 961, 961, 941, 21, 1])


def test_ddim_stable_diffusion():
    p = plan("ddim", 50, SD)
    np.testing.assert_array_equal(p.timesteps, np.arange(981, 0, -20))
    assert p.alpha[-1] ** 2 == pytest.approx(0.99915, rel=1e-6)  # ends on the first training level, not clean


@pytest.mark.parametrize(
    ("steps", "schedule", "timesteps", "sigmas", "first_weight"),
    [
        (50, "leading", {0: 981.0, -1: 1.0}, {0: 13.12042, -1: 0.04131}, 1.0),
        (
            50,
            "linspace",
            {0: 999, 1: 978.612, 2: 958.224, -2: 20.388, -1: 0},
            {0: 14.61465, -1: 0.02917},
            0.9976672,
        ),
        (4, "trailing", {0: 999, 1: 749, 2: 499, 3: 249}, {0: 14.61465, -1: 0.69321}, 0.9976672),
        (20, "karras", {0: 951.0, 1: 913.739, -2: 3.763, -1: 1.0}, {0: 11.02834, -1: 0.04131}, 1.0),
    ],
)
def test_euler(steps, schedule, timesteps, sigmas, first_weight):
    p = plan("euler", steps, SD, schedule)
    np.testing.assert_allclose(p.timesteps[list(timesteps)], list(timesteps.values()), atol=1e-3)
    np.testing.assert_allclose(ve(p)[list(sigmas)], list(sigmas.values()), rtol=1e-6, atol=6e-6)
    # diffusers scales x_T by sqrt(s^2 + 1) on leading and by s elsewhere, then the input by 1 / sqrt(s^2 + 1)
    assert p.weights[0, 0] == pytest.approx(first_weight, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "timesteps", "sigmas"),
    [
        ("leading", {0: 941, 1: 894, 2: 847, -2: 95, -1: 48}, {0: 10.42505, -1: 0.22041}),
        ("linspace", {0: 999, 1: 949, -2: 100, -1: 50}, {0: 14.61465, -1: 0.22558}),
        ("karras", {0: 999, 1: 962, 2: 921, -2: 2, -1: 0}, {0: 14.61465, -1: 0.02917}),
    ],
)
def test_dpmpp_2m(schedule, timesteps, sigmas):
    p = plan("dpmpp_2m", 20, SD, schedule)
    np.testing.assert_array_equal(p.timesteps[list(timesteps)], list(timesteps.values()))
    np.testing.assert_allclose(ve(p)[list(sigmas)], list(sigmas.values()), rtol=1e-6, atol=6e-6)


def test_zero_terminal_snr():
    p = plan("euler", 20, ZERO_SNR)
    np.testing.assert_array_equal(p.timesteps, np.arange(999, 0, -50))
    assert ve(p)[0] == pytest.approx(4096.0, rel=1e-7)
    assert plan("ddim", 20, ZERO_SNR).alpha[0] == 0.0


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_karras_where_diffusers_has_none(name):
    """All training levels, fractional timesteps, ending clean, the same noise levels as dpmpp_2m."""
    p = plan(name, 20, SD, "karras")
    assert p.alpha[-1] == 1.0 and p.sigma[-1] == 0.0 and p.inexact == ""
    np.testing.assert_allclose(np.unique(ve(p)), np.unique(ve(plan("dpmpp_2m", 20, SD, "karras"))), rtol=1e-12)


def test_trailing_has_as_many_steps_as_asked_for():
    """np.arange yields 62 points here, the last at timestep -1, which diffusers then visits."""
    assert plan("ddim", 61, SD, "trailing").timesteps[-1] > 0


def test_a_step_of_ddim_goes_back_a_fixed_stride():
    assert plan("ddim", 7, SD, "leading").inexact == ""
    assert "goes to timestep 857 and the next starts from 832" in plan("ddim", 7, SD, "linspace").inexact


@pytest.mark.parametrize(
    ("schedule", "timesteps", "sigmas"),
    [
        ("lu", {0: 999, 1: 943, 2: 882}, {0: 14.61465, -1: 0.02917}),
        ("exponential", {0: 998, 1: 942, 2: 881}, {0: 14.61465, -1: 0.02917}),
        ("beta", {0: 998, 1: 996, 2: 991}, {0: 14.61465, -1: 0.02917}),
    ],
)
def test_dpmpp_2m_in_whole_timesteps(schedule, timesteps, sigmas):
    """lu is rounded; exponential and beta are cut, from float32 tables in which the noisiest level is 998.99."""
    p = plan("dpmpp_2m", 20, SD, schedule)
    np.testing.assert_array_equal(p.timesteps[list(timesteps)], list(timesteps.values()))
    np.testing.assert_allclose(ve(p)[list(sigmas)], list(sigmas.values()), rtol=1e-6, atol=6e-6)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_range(schedule):
    """Euler's spans the spaced levels (leading: 951 .. 1), the DPM family's all; a config's own goes before both."""
    own = {**SD, "sigma_min": 0.1, "sigma_max": 10.0}
    for name, config, ends in (
        ("euler", SD, [11.02834, 0.0413143]),
        ("dpmpp_2m", SD, [14.61465, 0.0291675]),
        ("euler", own, [10.0, 0.1]),
        ("dpmpp_2m", own, [10.0, 0.1]),
    ):
        np.testing.assert_allclose(ve(plan(name, 20, config, schedule))[[0, -1]], ends, rtol=2e-5)


@pytest.mark.parametrize("schedule", SIGMA_SCHEDULES)
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim"])
def test_every_schedule_on_every_convention(name, schedule):
    """As many falling levels as steps, and a plan that reproduces a constant prediction; its name is kept."""
    for steps in (1, 2, 7, 40):
        p = plan(name, steps, {**SD, "clip_sample": False}, schedule)
        assert p.evaluations == steps and p.schedule == schedule and p.inexact == ""
        assert (np.diff(ve(p)) < 0).all() and p.sigma[-1] == 0.0
        assert p.timesteps.min() >= 0 and p.timesteps.max() <= 999


@pytest.mark.parametrize("flag", [*FLAGS.items()])
def test_config_selects_a_schedule(flag):
    """By the flag of a scheduler_config.json, for the classes that read it; `schedule=` goes before it."""
    schedule, key = flag
    config = {**SD, key: True}
    assert plan("dpmpp_2m", 8, config).schedule == schedule
    np.testing.assert_array_equal(plan("dpmpp_2m", 8, config).weights, plan("dpmpp_2m", 8, SD, schedule).weights)
    assert plan("ddim", 8, config).schedule == "leading"
    assert plan("dpmpp_2m", 8, config, "normal").schedule == "normal"


def test_lu_goes_before_exponential():
    """As in diffusers, which does not count use_lu_lambdas among the flags that exclude each other."""
    assert plan("dpmpp_2m", 8, {**SD, "use_lu_lambdas": True, "use_exponential_sigmas": True}).schedule == "lu"


def settings(**changes):
    return Settings(**{k: v for k, v in {**SD, **changes}.items() if k in vars(Settings())})


def test_conventions_of_the_other_classes():
    """KDPM2 rounds karras; LMS knows no range for it; UniPC ends where its last level stands."""
    asked = settings(schedule="karras", sigma_min=0.1, sigma_max=10.0, final_sigmas_type="sigma_min")
    euler, kdpm2 = euler_schedule(asked, 5), kdpm2_schedule(asked, 5)
    assert [here.t for here, _ in kdpm2.steps] == [round(here.t) for here, _ in euler.steps]
    assert [here.ve for here, _ in kdpm2.steps] == [here.ve for here, _ in euler.steps]
    assert kdpm2.level(1.0).t % 1 > 0.01  # between levels it is not
    np.testing.assert_allclose([here.ve for here, _ in lms_schedule(asked, 5).steps][-1], 0.0413143, rtol=2e-5)
    assert dpm_schedule(asked, 5).end.ve == pytest.approx(0.0291675, rel=2e-5)
    here, there = unipc_schedule(asked, 5).steps[-1]
    assert here.ve == pytest.approx(0.1) and there.ve == pytest.approx(0.1)
    cosine = settings(schedule="karras", beta_schedule="squaredcos_cap_v2")
    cut, rounded = (make(cosine, 9).steps for make in (dpm_schedule, singlestep_schedule))
    difference = [there.t - here.t for (here, _), (there, _) in zip(cut, rounded, strict=True)]
    assert set(difference) == {0.0, 1.0}


def test_final_sigma():
    """At the smallest training level, where the last level of karras already is: a step that goes nowhere."""
    config = {**SD, "final_sigmas_type": "sigma_min"}
    for name in ("euler", "dpmpp_2m"):
        p = plan(name, 12, config, "sgm_uniform")
        assert p.sigma[-1] / p.alpha[-1] == pytest.approx(0.0291675, rel=2e-5)
    here, there = dpm_schedule(settings(schedule="karras", final_sigmas_type="sigma_min"), 12).steps[-1]
    assert here.ve == there.ve


@pytest.mark.parametrize(
    ("name", "steps", "schedule", "message"),
    [
        ("ddim", 1000, "leading", "steps_offset"),
        ("dpmpp_2m", 1000, "linspace", "too many"),
        ("euler", 150, "beta_timesteps", "150 steps are too many for schedule 'beta_timesteps'"),
        ("ddim", 600, "laplace", "too many"),
        ("dpmpp_2m", 20, "kerras", "nearest: 'karras'"),
        ("dpmpp_2m", 20, "custom", "known: leading"),
    ],
)
def test_impossible_schedules(name, steps, schedule, message):
    with pytest.raises(ValueError, match=message):
        plan(name, steps, SD, schedule)


def test_impossible_ranges():
    with pytest.raises(ValueError, match="sigma_min 20 must be less"):
        plan("euler", 10, {**SD, "sigma_min": 20.0}, "karras")
    with pytest.raises(ValueError, match="1000 training levels, and this model has 500"):
        plan("euler", 10, {**SD, "num_train_timesteps": 500}, "ays")


def test_known_schedules():
    assert [check_schedule(name) for name in SCHEDULES][:4] == ["leading", "trailing", "linspace", "karras"]
    with pytest.raises(ValueError, match="timestep_spacing 'even'"):
        plan("ddim", 20, {**SD, "timestep_spacing": "even"})


@pytest.mark.parametrize(
    ("name", "timesteps", "end"),
    [
        ("unipc", {0: 941, 1: 894, 2: 847, -2: 95, -1: 48}, 0.0),
        ("deis", {0: 941, 1: 894, 2: 847, -2: 95, -1: 48}, 0.0291675),
        ("sa_solver", {0: 941, 1: 894, 2: 847, -2: 95, -1: 48}, 0.0291675),
        ("dpmpp_2s", {0: 999, 1: 949, -2: 100, -1: 50}, 0.0),  # its class knows linspace alone
        ("heun", {0: 951, 1: 901, 2: 901, 3: 851, 38: 1}, 0.0),
        ("dpm2", {0: 951, 1: 926.451, 2: 901, 3: 876.449, 37: 9.75, 38: 1}, 0.0),
        ("dpm2_ancestral", {0: 951, 1: 901, 2: 901, 3: 851, 38: 1}, 0.0),
        ("lms", {0: 951, 1: 901, -2: 51, -1: 1}, 0.0),
        ("euler_ancestral", {0: 951, 1: 901, -2: 51, -1: 1}, 0.0),
    ],
)
def test_other_samplers_on_the_config_of_stable_diffusion(name, timesteps, end):
    """20 steps; golden values of diffusers. DEIS and SA-Solver end at the smallest training level."""
    p = plan(name, 20, SD)
    np.testing.assert_allclose(p.timesteps[list(timesteps)], list(timesteps.values()), atol=1e-3)
    assert p.sigma[-1] / p.alpha[-1] == pytest.approx(end, rel=2e-5)


def test_all_samplers_on_all_schedules():
    """Every pair of the two makes a plan (a Plan checks itself)."""
    config = {**SD, "clip_sample": False}
    for name, schedule in itertools.product(SAMPLERS, SCHEDULES):
        p = plan(name, 6, config, schedule)
        assert p.schedule == schedule and np.isfinite(p.weights).all()


@pytest.mark.parametrize("preset", ["a1111", "comfy"])
def test_all_samplers_under_a_preset(preset):
    """Every sampler and schedule that the peer has makes a plan; none of A1111's own timesteps are pretended."""
    config, refused = {**SD, "clip_sample": False}, set()
    for name, schedule in itertools.product(SAMPLERS, (None, *NAMES[preset])):
        try:
            plan(name, 6, config, schedule, preset=preset)
        except ValueError as error:
            assert "on sigmas" in str(error) or "end them with 0" in str(error)
            refused.add((name, schedule if "end them" in str(error) else None))
    own = {(name, None) for name in OWN_TIMESTEPS}
    noisy = {(name, "laplace") for name in OWN_TIMESTEPS if name != "unipc"}
    assert refused == (own if preset == "a1111" else noisy)


OWN = [12.0, 5.0, 2.0, 1.0, 0.5]
CLEAN_ENDS = ("ddim", "ddim_inverse", "ddpm", "pndm", "pndm_prk", "lcm", "tcd")  # take no levels that end above 0


def interpolated(noise, config=SD):
    """The timestep of noise `ve`: linear in its logarithm between the training levels of tests/reference.py."""
    return np.interp(np.log(noise), np.log(clamped_sigmas(config)), np.arange(1000))


def two_stages(tape, schedule):
    """Heun's method as a user writes it, who asks the network at the end of every step."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        slope = (x - tape.denoise(here.alpha * x, here)) / here.ve
        guess = x + (there.ve - here.ve) * slope
        mixed = (slope + (guess - tape.denoise(there.alpha * guess, there)) / there.ve) / 2
        x = x + (there.ve - here.ve) * mixed
    return schedule.end.alpha * x


def ending_above_zero(name):
    """(plan, noise that is left) of runs that end above 0, in every way there is for the sampler."""
    yield plan(name, None, SD, sigmas=OWN), 0.5
    yield plan(name, None, SD, sigmas=list(np.geomspace(12.0, 0.7, 25))), 0.7  # from 20 on, restart has its own levels
    yield plan(name, 10, SD, "trailing", denoising_end=0.6), clamped_sigmas(SD)[399]
    if name not in OWN_TIMESTEPS:
        yield plan(name, None, SD, sigmas=OWN, preset="a1111"), 0.5
        yield plan(name, 6, SD, "kl_optimal", preset="a1111"), clamped_sigmas(SD)[0]
    record = SAMPLERS.get(name)
    if record and "final_sigmas_type" in record.reads and "timestep_spacing" in record.reads:
        yield plan(name, 12, {**SD, "final_sigmas_type": "sigma_min"}, "sgm_uniform"), clamped_sigmas(SD)[0]


OWN_LEVELS = pytest.mark.parametrize(
    "name", [*(n for n in SAMPLERS if n not in CLEAN_ENDS), two_stages], ids=lambda n: getattr(n, "__name__", n)
)


@OWN_LEVELS
def test_what_the_network_is_told_is_the_noise_it_sees(name):
    """At every evaluation, the last one of a run that ends above 0 included: by an interpolation of our own."""
    for p, _ in ending_above_zero(name):
        np.testing.assert_allclose(p.timesteps, interpolated(ve(p)), atol=1e-6)


def test_the_last_evaluation_of_heun():
    """sigma 0.5 lies between the training levels 169 and 170; whole timesteps are ComfyUI's."""
    for name in ("heun", "restart", two_stages):
        assert plan(name, None, SD, sigmas=OWN).timesteps[-3:] == pytest.approx([353.9, 353.9, 169.0], abs=0.5)
        whole = plan(name, None, SD, sigmas=OWN, preset="comfy").timesteps
        np.testing.assert_array_equal(whole[-3:], [354, 354, 169])


@OWN_LEVELS
def test_one_scale_for_whatever_ends_above_zero(name):
    """Were the data one picture c, every D would be c, and a result alpha c + sigma e, alpha^2 = 1 / (1 + ve^2)."""
    for p, left in ending_above_zero(name):
        n, w = p.rows - 1, p.weights[-1]
        of_start = w[0] / p.weights[0, 0]
        signal = of_start * p.start.alpha + w[1 : n + 1].sum()
        variance = (of_start * p.start.sigma) ** 2 + (w[n + 1 :] ** 2).sum()
        assert (signal, variance) == pytest.approx((1 / np.sqrt(1 + left**2), left**2 / (1 + left**2)), rel=1e-9)
        assert (p.alpha[-1], p.sigma[-1] ** 2) == pytest.approx((signal, variance), rel=1e-9)


def test_levels_of_ones_own_that_end_above_zero_are_to_go_on():
    """As after `denoising_end`; those that end at 0 are done."""
    assert plan("euler", None, SD, sigmas=OWN).unfinished and not plan("euler", None, SD, sigmas=[*OWN, 0]).unfinished
    first, second = plan("heun", None, SD, sigmas=OWN), plan("heun", 24, SD, denoising_end=0.5)
    assert first.table().sigma[-1] == np.float32(first.sigma[-1]) and second.unfinished


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_zero_terminal_snr_reaches_every_sampler(name):
    """The noisiest level holds no signal, or sigma 4096 for those that divide by it; never the 14.6 from before."""
    config = {**ZERO_SNR, "final_sigmas_type": "sigma_min"} if name == "dpm_solver" else ZERO_SNR
    for prediction in ("v_prediction", "sample"):
        p = plan(name, 20, {**config, "prediction_type": prediction})
        noisiest = -1 if name == "ddim_inverse" else 0
        exact = name in ("ddim", "ddim_inverse", "ddpm", "lcm", "tcd")
        assert p.alpha[noisiest] == pytest.approx(0.0 if exact else 2.0**-12, rel=1e-9)
    for preset in ("a1111", "comfy") if name not in OWN_TIMESTEPS else ():
        assert ve(plan(name, 20, ZERO_SNR, preset=preset))[0] == pytest.approx(4518.8, rel=1e-4)
