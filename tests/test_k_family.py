"""Solvers of the k-diffusion family that no peer's library can be installed for, and what they all refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from sdjax.diffusion.scan import run
from sdjax.diffusion.solvers.lms import integrals
from tests import reference
from tests.reference import SD, SHAPE, ZERO_SNR, draws, toy

X_T = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@jax.jit
def compiled(table, noise):
    return run(table, lambda x, t: toy(jnp, x, t), X_T, None, noise)


def ours(*args, **options):
    """(latents, plan), all by one compiled program; the draws are `draws`."""
    made = plan(*args, **options)
    return np.asarray(compiled(made.table(128), draws(2).astype(np.float32))), made


def check(result, expected):
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


def network(x, t):
    return toy(np, x, t)


def slope(config, x, sigma, t):
    return (x - reference.denoise_ve(config, network, x, sigma, t)) / sigma


@pytest.mark.parametrize("schedule", [None, "karras"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [2.0, 1.3])
def test_gradient_estimation(gamma, prediction, schedule):
    """Step by step in float64: slopes mixed as gamma and 1 - gamma, but for the first and the last."""
    config = {**SD, "prediction_type": prediction, "use_karras_sigmas": schedule == "karras"}
    for steps in (1, 2, 3, 20):
        ts, sigmas, start = reference.euler_levels(config, steps)
        x, old = X_T * start, None
        for i, t in enumerate(ts):
            d = slope(config, x, sigmas[i], t)
            mixed = d if old is None or i == steps - 1 else gamma * d + (1 - gamma) * old
            x, old = x + mixed * (sigmas[i + 1] - sigmas[i]), d
        check(ours("gradient_estimation", steps, config, gamma=gamma)[0], x)


def restarted(config, steps, noise):
    """A1111's default: [(from, to)] written out, then Heun's step for each and noise where one starts higher."""
    ts, sigmas, start = reference.euler_levels(config, steps)
    length, times = (0, 0) if steps < 20 else (9, 1) if steps < 36 else (steps // 4, 2)
    if times:
        sigmas = np.append(reference.karras(sigmas[-2], sigmas[0], steps - length * times), 0.0)
    told = dict(zip(sigmas, ts, strict=False)) if not times else {sigmas[0]: ts[0], sigmas[-2]: ts[-1]}
    logs = np.log(reference.clamped_sigmas(config))
    moves = list(zip(sigmas[:-1], sigmas[1:], strict=True))
    low, high = np.abs(sigmas - 0.1).argmin(), np.abs(sigmas - 2.0).argmin()
    if times and high < low:
        loop = reference.karras(sigmas[low], sigmas[high], length + 1)
        loop[0], loop[-1] = sigmas[high], sigmas[low]
        moves[low:low] = list(zip(loop[:-1], loop[1:], strict=True)) * times

    def at(x, sigma):
        return slope(config, x, sigma, told.get(sigma, np.interp(np.log(sigma), logs, np.arange(1000))))

    x, noise, reached, evaluations = X_T * start, iter(noise), np.inf, 0
    for s, to in moves:
        if s > reached:
            x = x + next(noise) * np.sqrt(s**2 - reached**2)
        d = at(x, s)
        if to > 0:
            d = (d + at(x + d * (to - s), to)) / 2
        x, reached, evaluations = x + d * (to - s), to, evaluations + (2 if to > 0 else 1)
    return x, evaluations


@pytest.mark.parametrize("config", [SD, {**SD, "use_karras_sigmas": True}, ZERO_SNR])
def test_restart(config):
    """None under 20 steps, one restart from 20 on, two from 36 on."""
    for steps, restarts in ((1, 0), (7, 0), (20, 1), (35, 1), (36, 2), (50, 2)):
        result, made = ours("restart", steps, config)
        expected, evaluations = restarted(config, steps, draws(2))
        check(result, expected)
        assert made.draws == restarts and made.evaluations == evaluations


def test_lms_integrates_its_polynomials_exactly():
    """Weights against the antiderivatives of the polynomials, found by their coefficients."""
    for count in (1, 2, 3, 4):
        noises = np.array([2.0, 3.1, 4.7, 9.0])[:count]
        for j, weight in enumerate(integrals(noises, 0.4)):
            others = np.delete(noises, j)
            whole = np.polyint(np.atleast_1d(np.poly(others)) / np.prod(noises[j] - others))
            assert weight == pytest.approx(np.polyval(whole, 0.4) - np.polyval(whole, noises[0]), rel=1e-12)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2"])
def test_churn_where_it_is_asked_for(name):
    """A draw for every step between s_tmin and s_tmax, none without churn; noise rises by sqrt(2) at the most."""
    ve = plan("euler", 20, SD)
    between = ((ve.sigma / ve.alpha)[:-1] >= 0.5) & ((ve.sigma / ve.alpha)[:-1] <= 5.0)
    assert plan(name, 20, SD).draws == 0 and plan(name, 20, SD, s_churn=2.0).draws == 20
    assert plan(name, 20, SD, s_churn=2.0, s_tmin=0.5, s_tmax=5.0).draws == between.sum()
    assert plan(name, 20, SD, s_churn=2.0, s_noise=1.01).inexact and not plan(name, 20, SD, s_churn=2.0).inexact
    most, more = (plan(name, 20, SD, s_churn=s).weights for s in (20 * (2**0.5 - 1), 1000.0))
    np.testing.assert_allclose(most, more, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("lms", 5, {"order": 5}, "order must be a whole number in 1 .. 4, not 5"),
        ("dpm_fast", 1, {}, "take 2 steps or more"),
        ("euler", 5, {"s_churn": -1.0}, "s_churn must be a number from 0 to 1e[+]06, not -1.0"),
        ("heun", 5, {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin and s_tmax must be"),
        ("dpm2", 5, {"s_churn": float("nan")}, "dpm2: s_churn must be a number, not nan"),
        ("euler_ancestral", 5, {"eta": -0.5}, "eta must be a number from 0"),
        ("dpm2_ancestral", 5, {"s_noise": -1.0}, "s_noise must be a number from 0"),
        ("dpmpp_sde", 5, {"eta": float("inf")}, "eta must be a number from 0 .* not inf"),
        ("dpmpp_3m_sde", 5, {"eta": -1.0}, "eta must be a number from 0"),
        ("gradient_estimation", 5, {"gamma": float("nan")}, "gamma must be a number"),
        ("restart", 20, {"s_noise": float("nan")}, "s_noise must be a number"),
    ],
)
def test_options_out_of_range(name, steps, options, message):
    with pytest.raises(ValueError, match=message):
        plan(name, steps, SD, **options)
