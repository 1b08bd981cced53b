"""Noise levels against their definitions and against numbers taken from diffusers 0.42.1."""

import math

import numpy as np
import pytest

from sdjax.diffusion.noise import Level, Settings, float32_ve, noise_schedule
from sdjax.diffusion.prediction import coefficients
from tests.reference import SD, alphas_cumprod

KEYS = frozenset(vars(Settings()))


def settings(**changes):
    return Settings.read({**SD, **changes}, KEYS, {})


def test_stable_diffusion_levels():
    noise = noise_schedule(settings())
    np.testing.assert_allclose(noise.alphas_cumprod[[0, 999]], [0.99915, 0.00466009], rtol=5e-6)
    np.testing.assert_allclose(noise.ve[[0, 1, 999]], [0.0291675, 0.0413143, 14.614648], rtol=2e-5)
    np.testing.assert_allclose(noise.alphas_cumprod, alphas_cumprod(SD), rtol=1e-13)


def test_zero_terminal_snr_keeps_the_first_level():
    plain, rescaled = noise_schedule(settings()), noise_schedule(settings(rescale_betas_zero_snr=True))
    assert rescaled.alphas_cumprod[-1] == 0.0
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-14)
    assert rescaled.without_zero_snr().ve[-1] == pytest.approx(4096.0, rel=1e-7)


def test_timestep_inverts_ve():
    noise = noise_schedule(settings())
    np.testing.assert_allclose(noise.timestep(noise.ve[[0, 17, 999]]), [0, 17, 999], atol=1e-9)
    assert 17 < noise.timestep(np.array([math.sqrt(noise.ve[17] * noise.ve[18])]))[0] < 18
    np.testing.assert_array_equal(noise.timestep(np.array([1e-3, 1e3])), [0, 999])


def test_at_inverts_timestep():
    noise = noise_schedule(settings())
    t = np.array([0.0, 0.25, 17.5, 998.99, 999.0])
    np.testing.assert_allclose(noise.timestep(noise.at(t)), t, atol=1e-9)


def test_nearest_training_level():
    """In log ve: just below and just above the geometric mean of two levels, and beyond both ends."""
    noise = noise_schedule(settings())
    middle = math.sqrt(noise.ve[17] * noise.ve[18])
    np.testing.assert_array_equal(noise.nearest(np.array([0.999 * middle, 1.001 * middle])), [17, 18])
    np.testing.assert_array_equal(noise.nearest(np.array([1e-3, 1e3])), [0, 999])
    assert noise.nearest(middle * 0.999) == 17


@pytest.mark.parametrize("changes", [{}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_float32_tables(changes):
    """They are the float64 ones to float32's accuracy, which at t = 0 is that of 1 - alpha^2."""
    exact = noise_schedule(settings(**changes))
    rounding = 2.0**-22 / (1 - exact.alphas_cumprod) + 2.0**-16
    assert (abs(float32_ve(settings(**changes)) / exact.ve - 1) < rounding).all()


def test_level_scales():
    level = Level.from_ve(2.0, 5.0)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1.0)
    assert level.ve == pytest.approx(2.0)
    assert level.log_snr == pytest.approx(-math.log(2.0))
    assert Level(1.0, 0.0, 0.0).log_snr == math.inf
    assert Level(0.0, 1.0, 999.0).ve == math.inf


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_gives_back_the_clean_latents(kind):
    level, x0, e = Level.from_ve(3.0, 100.0), 0.7, -1.3
    x = level.alpha * x0 + level.sigma * e
    raw = {"epsilon": e, "v_prediction": level.alpha * e - level.sigma * x0, "sample": x0}[kind]
    c_skip, c_out = coefficients(kind, level)
    assert c_skip * x + c_out * raw == pytest.approx(x0, rel=1e-13)


def test_class_defaults_and_ignored_keys():
    read = Settings.read({"steps_offset": 3, "clip_sample": False}, frozenset({"steps_offset"}), {"clip_sample": True})
    assert (read.steps_offset, read.clip_sample) == (3, True)
    read = Settings.read({"steps_offset": 3, "_use_default_values": ["steps_offset"]}, KEYS, {})
    assert read.steps_offset == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "known: linear"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps says 1000"),
        ({"beta_end": 1.5}, "betas must lie"),
        ({"beta_start": -1.0, "beta_schedule": "scaled_linear"}, "betas must lie"),
        ({"beta_end": float("inf")}, "betas must lie"),
        ({"beta_end": float("nan")}, "betas must lie"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"use_beta_sigmas": True, "use_karras_sigmas": True}, "only one of use_karras_sigmas and use_beta_sigmas"),
        ({"sigma_min": 0.0}, "sigma_min must be a number from 1e-06 to 20000, not 0.0"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        noise_schedule(settings(**changes))


def test_epsilon_without_signal_is_refused():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        coefficients("epsilon", Level(0.0, 1.0, 999.0))
