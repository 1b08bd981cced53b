"""Every schedule of every diffusers class and of k-diffusion: the levels, the timesteps, the scale of x_T.

diffusers' tables are float32: its smallest sigma is 1.3e-5 off, relatively, and a fractional timestep 1e-3.
"""

import itertools

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

from sdjax.diffusion import sigmas, spacing
from sdjax.diffusion.noise import Settings, noise_schedule
from sdjax.diffusion.overrides import choose
from tests.parity import toy
from tests.reference import SD, ZERO_SNR

SPACINGS = ("leading", "trailing", "linspace")
FLAGS = ("karras", "exponential", "beta")
STEPS = range(2, 51)
NOISY_END = {"final_sigmas_type": "sigma_min"}  # what DEIS and SA-Solver do without a key
# diffusers class: (our convention, its schedules, what its config cannot say)
CLASSES = {
    "EulerDiscreteScheduler": (spacing.euler_schedule, (*SPACINGS, *FLAGS), {}),
    "EulerAncestralDiscreteScheduler": (spacing.euler_schedule, SPACINGS, {}),
    "HeunDiscreteScheduler": (spacing.euler_schedule, (*SPACINGS, *FLAGS), {}),
    "KDPM2DiscreteScheduler": (spacing.kdpm2_schedule, (*SPACINGS, *FLAGS), {}),
    "KDPM2AncestralDiscreteScheduler": (spacing.kdpm2_schedule, (*SPACINGS, *FLAGS), {}),
    "LMSDiscreteScheduler": (spacing.lms_schedule, (*SPACINGS, *FLAGS), {}),
    "DPMSolverSDEScheduler": (spacing.lms_schedule, (*SPACINGS, *FLAGS), {}),
    "DPMSolverMultistepScheduler": (spacing.dpm_schedule, (*SPACINGS, *FLAGS, "lu"), {}),
    "DPMSolverSinglestepScheduler": (spacing.singlestep_schedule, ("linspace", *FLAGS), {}),
    "UniPCMultistepScheduler": (spacing.unipc_schedule, (*SPACINGS, *FLAGS), {}),
    "DEISMultistepScheduler": (spacing.unipc_schedule, (*SPACINGS, *FLAGS), NOISY_END),
    "SASolverScheduler": (spacing.unipc_schedule, (*SPACINGS, *FLAGS), NOISY_END),
}
CASES = [(name, schedule) for name, (_, schedules, _) in CLASSES.items() for schedule in schedules]
WHOLE = ("DPMSolverM", "DPMSolverSi", "UniPC", "DEIS", "SASolver")
TWICE = ("Heun", "KDPM2", "DPMSolverSDE")  # every level but the first twice


def theirs(scheduler):
    """(sigmas [N + 1], timesteps [N]) of a scheduler, each level once."""
    sigma, t = scheduler.sigmas.numpy().astype(float), scheduler.timesteps.numpy().astype(float)
    if type(scheduler).__name__.startswith(TWICE):
        return np.append(sigma[0], sigma[1::2])[: len(t) // 2 + 2], t[::2]
    return sigma, t


def compare(name, config, schedule, steps, scheduler, rtol=2e-5, **chosen):
    """Our levels for `config` against a diffusers scheduler that is set to them."""
    convention, _, fixed = CLASSES[name]
    read = Settings(**{k: v for k, v in config.items() if k in vars(Settings())}, **fixed)
    ours = convention(choose(read, name, schedule, **chosen), steps)
    ve = [*(here.ve for here, _ in ours.steps), ours.end.ve]
    sigma, t = theirs(scheduler)
    np.testing.assert_allclose(ve, sigma, rtol=rtol, err_msg=f"{name} {schedule} {steps}")
    told = [here.t for here, _ in ours.steps]
    tolerance = {"atol": 0} if name.startswith(WHOLE) else {"atol": 2e-3}
    np.testing.assert_allclose(told, t, rtol=0, **tolerance, err_msg=f"{name} {schedule} {steps}")
    here = ours.steps[0][0]
    init = ours.init if name.startswith(WHOLE) else ours.init / here.alpha
    assert init == pytest.approx(float(scheduler.init_noise_sigma), rel=2e-6)
    return ours


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_equal_to_diffusers(name, schedule):
    """N = 2 .. 50, asked for by `schedule=` over the config's own spacing."""
    scheduler = getattr(diffusers, name).from_config(toy.with_schedule(SD, schedule))
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        compare(name, SD, schedule, steps, scheduler)


@pytest.mark.parametrize("name", list(CLASSES))
def test_config_selects(name):
    """The flags of a scheduler_config.json, on every spacing and with a range of its own."""
    scheduler = getattr(diffusers, name).from_config(SD)
    for schedule, even in itertools.product([s for s in CLASSES[name][1] if s not in SPACINGS], SPACINGS):
        for span in ({"sigma_min": None, "sigma_max": None}, {"sigma_min": 0.1, "sigma_max": 10.0}):
            flags = {flag: flag == toy.FLAGS[schedule] for flag in toy.FLAGS.values()}
            config = {**SD, **flags, "timestep_spacing": even, **span}
            scheduler.register_to_config(**config)
            scheduler.set_timesteps(7)
            compare(name, config, None, 7, scheduler)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_final_sigma_and_zero_snr(name):
    """A run that ends at the smallest level, and one that starts without signal."""
    for base, schedule in itertools.product((SD, ZERO_SNR), CLASSES[name][1]):
        config = {**toy.with_schedule(base, schedule), "final_sigmas_type": "sigma_min"}
        for span in ({}, {"sigma_min": 0.1}) if schedule in FLAGS else ({},):
            scheduler = getattr(diffusers, name).from_config({**config, **span})
            scheduler.set_timesteps(12)
            compare(name, {**base, **NOISY_END, **span}, schedule, 12, scheduler)


@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith(WHOLE)])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_cosine_betas(name, schedule):
    """The multistep class cuts the timesteps of karras here, where the others round them.

    1 - alpha^2 begins at 4e-5: its float32 is 5e-4 off.
    """
    cosine = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}
    scheduler = getattr(diffusers, name).from_config(toy.with_schedule(cosine, schedule))
    for steps in (2, 5, 20, 50):
        scheduler.set_timesteps(steps)
        compare(name, cosine, schedule, steps, scheduler, rtol=5e-4)


def test_kdpm2_between_levels():
    """The timestep between two levels is interpolated even where those of the levels are rounded."""
    scheduler = diffusers.KDPM2DiscreteScheduler.from_config(toy.with_schedule(SD, "karras"))
    scheduler.set_timesteps(20)
    ours = compare("KDPM2DiscreteScheduler", SD, "karras", 20, scheduler)
    between = [ours.level((here.ve * there.ve) ** 0.5).t for here, there in ours.steps[:-1]]
    np.testing.assert_allclose(between, scheduler.timesteps.numpy()[1::2], atol=2e-3)


@pytest.mark.parametrize("even", SPACINGS)
def test_custom_sigmas_and_timesteps(even):
    """diffusers' `set_timesteps(sigmas=..)` and `(timesteps=..)`, with its own published tables."""
    config = {**SD, "timestep_spacing": even}
    ays, levels = AysSchedules["StableDiffusionXLTimesteps"], AysSchedules["StableDiffusionXLSigmas"]
    for given in (levels, levels[:-1]):
        euler = diffusers.EulerDiscreteScheduler.from_config(config)
        euler.set_timesteps(sigmas=given)
        compare("EulerDiscreteScheduler", config, None, len(given) - 1, euler, sigmas=given)
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(timesteps=ays)
        compare(name, config, None, 10, scheduler, timesteps=ays)


@pytest.mark.parametrize(("table", "name"), [("StableDiffusion", "ays"), ("StableDiffusionXL", "ays_sdxl")])
def test_ays_tables(table, name):
    """Ten steps are diffusers' table of timesteps; its table of sigmas differs from it by up to 1.4 percent."""
    noise = noise_schedule(Settings(**{k: v for k, v in SD.items() if k in vars(Settings())}))
    ve = sigmas.noise_levels(name, noise, 10)
    np.testing.assert_allclose(noise.timestep(ve), AysSchedules[table + "Timesteps"], atol=1e-9)
    np.testing.assert_allclose(ve, AysSchedules[table + "Sigmas"][:-1], rtol=1.5e-2)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 50])
@pytest.mark.parametrize(("low", "high"), [(0.0291675, 14.614642), (0.1, 10.0), (0.002, 80.0)])
def test_equal_to_k_diffusion(steps, low, high):
    theirs = toy.k_diffusion()
    pairs = [
        (sigmas.karras(low, high, steps), theirs.get_sigmas_karras(steps, low, high)),
        (sigmas.karras(low, high, steps, 3.0), theirs.get_sigmas_karras(steps, low, high, rho=3.0)),
        (sigmas.exponential(low, high, steps), theirs.get_sigmas_exponential(steps, low, high)),
        (sigmas.polyexponential(low, high, steps), theirs.get_sigmas_polyexponential(steps, low, high)),
        (sigmas.polyexponential(low, high, steps, 2.0), theirs.get_sigmas_polyexponential(steps, low, high, rho=2.0)),
    ]
    for ours, sigma in pairs:
        np.testing.assert_allclose([*ours, 0.0], sigma.to(torch.float64).numpy(), rtol=1e-5)


@pytest.mark.parametrize("a", [0.6, 0.3, 1.0, 2.5])
def test_beta_quantile_against_scipy(a):
    p = np.concatenate([np.linspace(0, 1, 2001), np.logspace(-12, -1, 50)])
    np.testing.assert_allclose(sigmas.beta_quantile(p, a), scipy.stats.beta.ppf(p, a, a), rtol=1e-11, atol=1e-13)
