"""The formulas for noise levels: what each must hold, and tables published elsewhere."""

import math

import numpy as np
import pytest

from sdjax.diffusion import sigmas
from sdjax.diffusion.noise import Settings, noise_schedule
from tests.reference import SD, alphas_cumprod

NOISE = noise_schedule(Settings(**{k: v for k, v in SD.items() if k in vars(Settings())}))
VE = np.sqrt(1 / alphas_cumprod(SD) - 1)  # the training levels, a second time
# docs.comfy.org, "Datatypes", SIGMAS: what `normal` with 20 steps produces for an SDXL model.
COMFY_NORMAL_20 = [
    14.6146, 10.7468, 8.0815, 6.2049, 4.8557, 3.8654, 3.1238, 2.5572, 2.1157, 1.7648,
    1.4806, 1.2458, 1.0481, 0.8784, 0.7297, 0.5964, 0.4736, 0.3555, 0.2322, 0.0292,
]  # fmt: skip
# NOISE_LEVELS of ComfyUI comfy_extras/nodes_align_your_steps.py.
COMFY_AYS = {
    "ays": [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
            0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582],
    "ays_sdxl": [14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
                 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582],
}  # fmt: skip


def levels(name, steps, **more):
    return sigmas.noise_levels(name, NOISE, steps, **more)


def test_normal_as_published():
    np.testing.assert_allclose(levels("normal", 20), COMFY_NORMAL_20, atol=5.1e-5)


@pytest.mark.parametrize("name", ["ays", "ays_sdxl"])
def test_ays_as_published(name):
    """The table is the noise of ten timesteps; other counts come from it by log-linear interpolation."""
    table = COMFY_AYS[name]
    np.testing.assert_allclose(levels(name, 10), table[:-1], rtol=1e-8)
    twice = levels(name, 20)
    np.testing.assert_allclose(twice[::2], table[:-1], rtol=1e-8)
    np.testing.assert_allclose(twice[1::2], np.sqrt(np.array(table[1:]) * table[:-1]), rtol=1e-8)


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
@pytest.mark.parametrize(
    ("name", "straight"),
    [
        ("karras", lambda s: s ** (1 / 7)),
        ("exponential", np.log),
        ("lu", np.log),
        ("polyexponential", np.log),
        ("kl_optimal", np.arctan),
    ],
)
def test_straight_in_its_own_variable(name, straight, steps):
    """From the noisiest training level to the cleanest, by equal steps of the variable that the source names."""
    ve = levels(name, steps)
    np.testing.assert_allclose(ve[[0, -1]], [VE[-1], VE[0]], rtol=1e-12)
    assert np.ptp(np.diff(straight(ve))) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_timesteps_of_each(steps):
    """A second derivation, by counting."""
    whole = {
        "simple": [math.floor(999 - i * 1000 / steps) + (i * 1000 % steps > 0) for i in range(steps)],
        "ddim_uniform": [1 + i * (1000 // steps) for i in reversed(range(steps))],
    }
    for name, timesteps in whole.items():
        np.testing.assert_allclose(levels(name, steps), VE[timesteps], rtol=1e-11, err_msg=name)
    even = [999 - 999 * i / steps for i in range(steps)]
    low = np.floor(even).astype(int)
    part = np.array(even) - low
    between = VE[low] ** (1 - part) * VE[np.minimum(low + 1, 999)] ** part
    np.testing.assert_allclose(levels("sgm_uniform", steps), between, rtol=1e-11)


@pytest.mark.parametrize("steps", [2, 10, 20, 51])
def test_linear_quadratic(steps):
    """A line of slope 0.025 / (N/2), a parabola with that slope where they meet, and 1 - sigma/max = 1 at i = N."""
    x, half = 1 - levels("linear_quadratic", steps) / VE[-1], steps // 2
    np.testing.assert_allclose(x[: half + 1], 0.025 / half * np.arange(half + 1), atol=1e-12)
    tail = [*x[half:], 1.0]
    c = (1 - 0.025 - 0.025 / half * (steps - half)) / (steps - half) ** 2
    i = np.arange(len(tail))
    np.testing.assert_allclose(tail, 0.025 + 0.025 / half * i + c * i * i, atol=1e-12)


def test_laplace():
    """Quantiles: half the levels lie on either side of ve = 1; the ends are clipped to the training range."""
    ve = levels("laplace", 21)
    assert ve[10] == pytest.approx(1.0) and ve[0] == pytest.approx(VE[-1]) and ve[-1] == pytest.approx(VE[0])
    np.testing.assert_allclose(ve[1:20] * ve[::-1][1:20], 1.0, rtol=1e-9)
    assert ve[5] == pytest.approx(math.exp(-0.5 * math.log(0.5 + 1e-5)))  # a quarter of the way


def test_beta_quantile():
    """The arcsine law for a = 1/2, the uniform one for a = 1, and its own integral for 0.6."""
    p = np.linspace(0, 1, 101)
    np.testing.assert_allclose(sigmas.beta_quantile(p, 0.5), np.sin(np.pi * p / 2) ** 2, atol=1e-14)
    np.testing.assert_allclose(sigmas.beta_quantile(p, 1.0), p, atol=1e-14)
    x = sigmas.beta_quantile(np.array([0.1, 0.3]))
    theta = np.linspace(*np.arcsin(np.sqrt(x)), 20001)  # x = sin^2, where the density is smooth
    density = 2 * (np.sin(theta) * np.cos(theta)) ** 0.2 * math.gamma(1.2) / math.gamma(0.6) ** 2
    assert np.trapezoid(density, theta) == pytest.approx(0.2, rel=1e-9)


def test_beta_in_noise_and_in_timesteps():
    """Two schedules of one distribution: far apart, as ve is anything but linear in t."""
    q = sigmas.beta_quantile(np.linspace(1, 0, 9))
    np.testing.assert_allclose(levels("beta", 9), VE[0] + q * (VE[-1] - VE[0]), rtol=1e-12)
    timesteps = np.rint(999 * sigmas.beta_quantile(1 - np.arange(9) / 9)).astype(int)
    np.testing.assert_allclose(levels("beta_timesteps", 9), VE[timesteps], rtol=1e-11)


def test_own_range():
    ve = levels("karras", 5, span=(0.1, 10.0), rho=3.0)
    np.testing.assert_allclose(ve ** (1 / 3), np.linspace(10 ** (1 / 3), 0.1 ** (1 / 3), 5))
