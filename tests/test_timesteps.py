"""The levels that solvers of whole timesteps visit, and what those solvers do that needs no other library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion import solvers
from sdjax.diffusion.noise import Level, Settings, noise_schedule
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.scan import run
from sdjax.diffusion.spacing import euler_schedule
from sdjax.diffusion.timesteps import TrajectorySchedule, ddim_schedule, inverse_schedule, prk_schedule, tcd_schedule
from tests.reference import SD, SHAPE, alphas_cumprod

NAMES = ("ddim", "ddim_inverse", "ddpm", "pndm", "pndm_prk", "lcm", "tcd")
SETTINGS = Settings(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


@pytest.mark.parametrize(
    ("name", "steps", "timesteps"),
    [
        ("ddim_inverse", 4, [1, 251, 501, 751]),
        ("ddpm", 4, [751, 501, 251, 1]),
        ("pndm_prk", 4, [751, 626, 626, 501, 501, 376, 376, 251, 251, 126, 126, 1, 1]),
        ("lcm", 4, [999, 759, 499, 259]),
        ("tcd", 4, [999, 759, 499, 259]),
        ("tcd", 1, [999]),
    ],
)
def test_timesteps(name, steps, timesteps):
    np.testing.assert_array_equal(plan(name, steps, SD).timesteps, timesteps)


def test_where_runs_end():
    """ddpm and lcm end clean, tcd and (by its config) ddim at the first training level, ddim_inverse at a noisy one."""
    first, last = np.sqrt(alphas_cumprod(SD)[[0, 981]])
    ends = {name: plan(name, 50, SD).alpha[-1] for name in NAMES}
    expected = {
        "ddim": first,
        "ddim_inverse": last,
        "ddpm": 1,
        "pndm": first,
        "pndm_prk": first,
        "lcm": 1,
        "tcd": first,
    }
    assert ends == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_inverse_takes_the_steps_of_ddim_backwards(spacing, steps):
    settings = Settings(**{**vars(SETTINGS), "timestep_spacing": spacing})
    up, down = inverse_schedule(settings, steps), ddim_schedule(settings, steps)
    assert [(b, a) for a, b in reversed(up.steps)] == list(down.steps) and up.end == down.steps[0][0]


@pytest.mark.parametrize("steps", [4, 7, 8, 50])
def test_runge_kutta_stages(steps):
    """Each of the first three steps, four times over; then DDIM's own steps."""
    plain, stages = ddim_schedule(SETTINGS, steps).steps, prk_schedule(SETTINGS, steps).steps
    assert len(stages) == steps + 9 and stages[12:] == plain[3:]
    for i in range(12):
        (here, there), (begin, end) = stages[i], plain[i // 4]
        assert here == begin and end.ve <= there.ve < begin.ve and (i % 4 < 2 or there == end)


def test_the_levels_of_tcd_below_its_own():
    """floor(0.7 x 90) is 63 in float32, which diffusers computes in, and 62 in float64."""
    schedule, noise = tcd_schedule(SETTINGS, 4), noise_schedule(SETTINGS)
    assert isinstance(schedule, TrajectorySchedule)
    assert schedule.fraction(noise.level(90), 0.7) == noise.level(63)
    assert schedule.fraction(noise.level(759), 1.0) == noise.level(759)
    assert schedule.fraction(noise.level(759), 0.0) == noise.level(0)


@pytest.mark.parametrize("name", NAMES)
def test_sigma_schedules_where_diffusers_has_none(name):
    """The full range of training levels with fractional timesteps, and clean at the end."""
    p, noise = plan(name, 20, SD, "karras"), noise_schedule(SETTINGS)
    visited = p.row_timesteps[p.evaluate]
    assert [visited.min(), visited.max()] == pytest.approx([0.0, 999.0], abs=1e-9) and (visited % 1 > 0.1).any()
    assert np.isfinite(p.weights).all()
    assert p.alpha[-1] == pytest.approx(noise.level(999).alpha if name == "ddim_inverse" else 1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_spacing_of_the_callers_own_wins_over_distillation(name):
    """The config's is ignored, as diffusers ignores it."""
    np.testing.assert_array_equal(plan(name, 4, SD, "trailing").timesteps, [999, 749, 499, 249])
    np.testing.assert_array_equal(plan(name, 4, {**SD, "timestep_spacing": "trailing"}).timesteps, [999, 759, 499, 259])


@pytest.mark.parametrize(
    ("name", "steps", "config", "message"),
    [
        ("ddpm", 20, {"variance_type": "learned_range"}, "'learned_range' is not supported .*; known: fixed_small, "),
        ("pndm_prk", 3, {}, "at least 4 steps.*or pndm"),
        ("lcm", 51, {}, "51 steps are more than the 50 that the network was distilled on"),
        ("tcd", 9, {"original_inference_steps": 8}, "at most 8, or set original_inference_steps"),
        ("lcm", 4, {"original_inference_steps": 1001}, r"must be in 1 \.\. 1000"),
        ("lcm", 4, {"original_inference_steps": 0}, r"must be in 1 \.\. 1000"),
        ("ddim_inverse", 20, {"set_alpha_to_one": True, "prediction_type": "sample"}, "set_alpha_to_one to false"),
    ],
)
def test_impossible_runs(name, steps, config, message):
    with pytest.raises(ValueError, match=message):
        plan(name, steps, {**SD, **config})


@pytest.mark.parametrize(
    ("solver", "message"), [(solvers.pndm_prk, "timesteps.prk_schedule"), (solvers.tcd, "timesteps.tcd_schedule")]
)
def test_solvers_on_a_schedule_of_another_kind(solver, message):
    with pytest.raises(ValueError, match=message):
        plan(Sampler(solver, euler_schedule), 20, SD)


@pytest.mark.parametrize(("name", "option"), [("tcd", {"eta": 1.5}), ("ipndm", {"max_order": 5})])
def test_options_out_of_range(name, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
        plan(name, 4, SD, **option)


@jax.jit
def follow(table, x):
    return run(table, gaussian, x)


def gaussian(x, t):
    """The exact noise prediction for data of standard deviation 0.5."""
    a = jnp.interp(t, jnp.arange(1000.0), jnp.asarray(alphas_cumprod(SD), jnp.float32))
    return jnp.sqrt(1 - a) * x / (0.25 * a + 1 - a)


@pytest.mark.parametrize("schedule", ["leading", "karras"])
def test_up_and_down_again(schedule):
    """ddim_inverse finds the noise that ddim makes the same latents of, the better the more steps: first order."""
    clean = 0.5 * np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    errors = []
    for steps in (32, 64, 128):
        noise = follow(plan("ddim_inverse", steps, SD, schedule).table(128), clean)
        again = follow(plan("ddim", steps, SD, schedule).table(128), noise)
        errors.append(float(np.abs(again - clean).max() / np.abs(clean).max()))
    assert 0.9 < float(np.std(noise)) < 1.1  # on the way it was unit noise indeed
    assert errors[-1] < 0.03 and all(1.7 < a / b < 2.3 for a, b in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("schedule", ["leading", "karras"])
def test_ddpm_is_ddim_with_all_noise_fresh(schedule):
    """The same matrix, but for ddim's last draw of weight 0: the posterior of x' given x and D is unique."""
    config = {**SD, "set_alpha_to_one": True}
    ours, other = plan("ddpm", 20, config, schedule), plan("ddim", 20, config, schedule, eta=1.0)
    np.testing.assert_allclose(ours.weights, other.weights[:, :-1], rtol=0, atol=1e-12)
    assert not other.weights[:, -1].any()


def test_tcd_without_noise_is_ddim():
    """On fractional timesteps, too, where the training level below the next one is not the next one."""
    ours, other = plan("tcd", 20, SD, "karras", eta=0.0), plan("ddim", 20, SD, "karras")
    np.testing.assert_allclose(ours.weights, other.weights, rtol=0, atol=1e-12)


def test_fixed_large_leaves_noise():
    """Its variance is that of the forward step, more than the levels allow, down to the last: told in `inexact`."""
    p = plan("ddpm", 20, {**SD, "variance_type": "fixed_large"})
    assert "fixed_large" in p.inexact
    assert p.weights[-1, -1] == pytest.approx(Level.from_ve(noise_schedule(SETTINGS).ve[1], 1.0).sigma, rel=1e-9)
    assert plan("ddpm", 20, SD).inexact == ""
