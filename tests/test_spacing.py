"""The levels a run visits, against golden values taken from diffusers 0.42.1."""

import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from sdjax.diffusion.spacing import SCHEDULES, check_schedule
from tests.reference import SD, ZERO_SNR


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
    ("name", "steps", "schedule", "message"),
    [
        ("ddim", 1000, "leading", "steps_offset"),
        ("dpmpp_2m", 1000, "linspace", "too many"),
        ("dpmpp_2m", 20, "kerras", "nearest: 'karras'"),
    ],
)
def test_impossible_schedules(name, steps, schedule, message):
    with pytest.raises(ValueError, match=message):
        plan(name, steps, SD, schedule)


def test_known_schedules():
    assert [check_schedule(name) for name in SCHEDULES] == ["leading", "trailing", "linspace", "karras"]
    with pytest.raises(ValueError, match="timestep_spacing 'even'"):
        plan("ddim", 20, {**SD, "timestep_spacing": "even"})
