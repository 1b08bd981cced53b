"""Every sampler converges as fast as it claims, on a mixture of Gaussians whose answer is known by other means."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

from experiments import convergence, mixture, order
from experiments.convergence import END, START, TOLERANCE, Case
from sdjax.diffusion import scan
from sdjax.diffusion.noise import Level
from sdjax.diffusion.prediction import coefficients
from sdjax.diffusion.samplers import SAMPLERS


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


CASES = [c for c in order.cases(list(SAMPLERS), variants=True) if c.order]
NOISY = {c.name for c in CASES if convergence.make_plan(c, "exponential", 24).draws}


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in NOISY], ids=lambda c: c.name)
def test_order_is_the_one_claimed(case):
    """On `gentle` levels, where a warm-up hides nothing; to order 2, which it never hides, on Karras's too, and on
    sigmas of one's own that end at 0.5, where the network is told what it sees only if the last timestep is right."""
    for levels in ("gentle", "karras", "noisy") if case.order <= 2 else ("gentle",):
        found = convergence.flow(case, levels, (64, 128, 256, 512) if levels == "gentle" else (64, 128, 256))
        assert found.order == pytest.approx(case.order, abs=TOLERANCE), found


@pytest.mark.parametrize(("name", "expected"), [("dpmpp_2m", 2), ("unipc", 3), ("pndm", 1), ("pndm_prk", 1)])
def test_order_with_v_predictions(name, expected):
    """The same, but for PNDM: as in diffusers it reads a mix of v-predictions as one of the level it is at."""
    found = convergence.flow(Case(name), "exponential", (64, 128, 256), prediction="v_prediction")
    assert found.order == pytest.approx(expected, abs=TOLERANCE), found


def two_stages(tape, schedule):
    """Heun's method as a user writes it, who asks the network at the end of every step."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        slope = (x - tape.denoise(here.alpha * x, here)) / here.ve
        guess = x + (there.ve - here.ve) * slope
        x = x + (there.ve - here.ve) * (slope + (guess - tape.denoise(there.alpha * guess, there)) / there.ve) / 2
    return schedule.end.alpha * x


@pytest.mark.parametrize("solver", ["restart", two_stages], ids=["restart", "ones_own"])
def test_order_of_what_asks_the_network_at_the_end(solver):
    """A solver of one's own, and restart, which has no restart below 20 steps."""
    found = convergence.flow(Case(solver, order=2), "noisy", (8, 16) if solver == "restart" else (64, 128, 256))
    assert found.order == pytest.approx(2, abs=2 * TOLERANCE if solver == "restart" else TOLERANCE), found


def test_uneven_steps_tell_exact_coefficients_from_fixed_ones():
    """The experiment sees a method that is wrong for the levels it is on."""
    found = {n: convergence.flow(Case(n), "uneven", (64, 128, 256)).order for n in ("ipndm", "dpmpp_2m")}
    assert found["ipndm"] == pytest.approx(1, abs=TOLERANCE)
    assert found["dpmpp_2m"] == pytest.approx(2, abs=TOLERANCE)


def test_strong_and_weak_order_on_one_path():
    """Ancestral runs of N and 2N steps on the same paths draw together as 1 / N, and so do their means."""
    strong, weak = convergence.noisy(Case("euler_ancestral"), "exponential", 1, (32, 64, 128, 256))
    assert strong.order == pytest.approx(1, abs=TOLERANCE), strong
    assert weak.order == pytest.approx(1, abs=TOLERANCE), weak


def test_the_path_is_the_image_keys_own():
    """From keys alone, ever finer runs come to the reverse diffusion's solution on the path of those keys."""
    keys, y = scan.keys_per_image(jax.random.key(0), 64), convergence.starting_noise(64)
    truth = mixture.diffusion(keys, jnp.asarray(START * y), convergence.noise_levels("exponential", 1024))
    errors = []
    for steps in (32, 128):
        the_plan = convergence.make_plan(Case("euler_ancestral"), "exponential", steps)
        errors.append(convergence.rms(convergence.end_of(the_plan, y, keys=keys) - truth))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(1, abs=0.3), errors


def test_denoiser_is_tweedies():
    """D = y + ve^2 grad log p(y), with the density from SciPy and its gradient by central differences."""
    ve, step = 0.7, 1e-5
    y = np.random.default_rng(1).standard_normal((5, mixture.DIMENSION))
    covariances = np.einsum("kde,ke,kfe->kdf", mixture.AXES, mixture.SPREADS**2, mixture.AXES)

    def log_density(at):
        parts = [
            multivariate_normal(m, s + ve**2 * np.eye(mixture.DIMENSION)).pdf(at)
            for m, s in zip(mixture.MEANS, covariances, strict=True)
        ]
        return np.log(np.sum(parts, 0))

    moved = step * np.eye(mixture.DIMENSION)
    score = np.stack([(log_density(y + e) - log_density(y - e)) / (2 * step) for e in moved], -1)
    np.testing.assert_allclose(mixture.denoised(jnp.asarray(y), ve), y + ve**2 * score, atol=1e-8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_network_means_the_denoiser(prediction):
    level = Level.from_ve(0.7, 0.0)
    x = jnp.asarray(convergence.starting_noise(4))
    c_skip, c_out = coefficients(prediction, level)
    clean = c_skip * x + c_out * mixture.network(x, jnp.asarray(level.ve), prediction)
    np.testing.assert_allclose(clean, mixture.denoised(x / level.alpha, level.ve), atol=1e-12)


def test_flow_is_scipys():
    y = START * convergence.starting_noise(4)
    denoised = jax.jit(mixture.denoised)

    def slope(l, flat):
        here = flat.reshape(y.shape)
        return (np.asarray(denoised(here, np.exp(-l))) - here).ravel()

    found = solve_ivp(slope, (-math.log(START), -math.log(END)), y.ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(mixture.flow(jnp.asarray(y), START, END), found.y[:, -1].reshape(y.shape), atol=1e-11)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="nearest: heun"):
        order.cases(["huen"], variants=True)
