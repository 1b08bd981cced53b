"""The k-diffusion family against diffusers' classes, where it has them, and against k_diffusion.sampling itself.

diffusers' sigmas are float32; k-diffusion's functions run here in float64. What is left is printed by
`python -m tests.parity.test_k_diffusion`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import sys
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.diffusion import brownian
from sdjax.diffusion.adaptive import dpm_adaptive
from sdjax.diffusion.noise import Level
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import SAMPLERS
from tests import reference
from tests.parity.toy import (
    BOUND,
    X_T,
    difference,
    diffusers_run,
    handed_out,
    k_denoiser,
    k_diffusion,
    k_run,
    sdjax_run,
    with_schedule,
)
from tests.reference import SD, ZERO_SNR, draws, toy

for needed in ("k_diffusion", "torchsde", "torchdiffeq", "scipy"):
    if importlib.util.find_spec(needed) is None:
        reason = f"{needed} is not installed: pip install --no-deps k-diffusion, and torchsde torchdiffeq scipy"
        pytest.skip(reason, allow_module_level=True)

CLASSES = {
    "lms": diffusers.LMSDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2_ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
}
STEPS = (1, 2, 3, 7, 20, 50)
NOISE = draws(128).astype(np.float32)


def cases():
    for name, prediction in itertools.product(CLASSES, ("epsilon", "v_prediction", "sample")):
        if prediction == "sample" and name not in ("lms", "heun"):  # the other classes refuse it
            continue
        for schedule in ("leading", "trailing", "linspace", "karras"):
            if (name, schedule) != ("euler_ancestral", "karras"):  # its class knows no sigma schedules
                yield name, schedule, prediction


def for_both_parts(noise, ve):
    """The draws of dpmpp_sde in k-diffusion's terms: that of a step's first half, then that of the whole step."""
    asked = []
    for i, (here, there) in enumerate(itertools.pairwise(ve)):
        first, second = noise[2 * i], noise[2 * i + 1]
        p = brownian.share(*(Level.from_ve(v, 0.0) for v in (here, math.sqrt(here * there), there)))
        asked += [first, math.sqrt(p) * first + math.sqrt(1 - p) * second]
    return asked


@functools.cache
def made(name, config):
    """diffusers' scheduler from a config as JSON: KDPM2 takes half a second to make."""
    return CLASSES[name].from_config(json.loads(config))


def against_diffusers(name, steps, config, schedule=None):
    ours = plan(name, steps, config, schedule)
    theirs = made(name, json.dumps(with_schedule(config, schedule)))
    if name == "dpmpp_sde":
        ve = ours.sigma / ours.alpha
        draw = handed_out(for_both_parts(NOISE, [*ve[:-1:2], ve[-1]]))
        with mock.patch.object(sys.modules[type(theirs).__module__], "BrownianTreeNoiseSampler", lambda *_, **__: draw):
            timesteps, theirs = diffusers_run(theirs, steps)
    else:
        timesteps, theirs = diffusers_run(theirs, steps, noise=NOISE)
    # diffusers rounds its smallest sigma by 1.3e-5 (see `noise`), midpoints with it, and more where it takes squares
    np.testing.assert_allclose(ours.timesteps, timesteps, rtol=1e-6, atol=1e-2)
    return difference(sdjax_run(ours, NOISE), theirs)


@pytest.mark.parametrize(("name", "schedule", "prediction"), list(cases()))
def test_equal_to_diffusers(name, schedule, prediction):
    for steps in STEPS:
        assert against_diffusers(name, steps, {**SD, "prediction_type": prediction}, schedule) <= BOUND


@pytest.mark.parametrize("name", CLASSES)
def test_class_defaults_and_other_options(name):
    """Missing keys take the class's defaults; keys of another class are ignored or obeyed as that class does."""
    bare = {"beta_schedule": "scaled_linear"}
    configs = [
        bare,
        {**SD, "beta_schedule": "linear"},
        {**SD, "clip_sample": True, "clip_sample_range": 0.7},
        {**SD, "final_sigmas_type": "sigma_min"},
        {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing", "sigma_min": 0.1, "sigma_max": 9.0},
        {**SD, "trained_betas": list(np.linspace(1e-4, 0.015, 500)), "num_train_timesteps": 500},
    ]
    if name == "euler_ancestral":  # the other classes do not know rescale_betas_zero_snr, which is the network's own
        configs.append(ZERO_SNR)
    if name != "dpm2_ancestral":  # there diffusers' own timesteps come out as NaN
        configs.append({**bare, "beta_schedule": "squaredcos_cap_v2"})
    for config, steps in itertools.product(configs, (3, 16)):
        assert against_diffusers(name, steps, config) <= BOUND, config


def churned_by_diffusers(steps, s_churn, ahead):
    """diffusers' Euler with churn; `ahead`: the network sees the latents after the noise, else those from before."""
    scheduler = diffusers.EulerDiscreteScheduler.from_config(SD)
    scheduler.set_timesteps(steps)
    all_ve = np.sqrt(1 / np.asarray(scheduler.alphas_cumprod, np.float64) - 1)
    x, gamma = torch.from_numpy(X_T) * scheduler.init_noise_sigma, min(s_churn / steps, math.sqrt(2) - 1)
    for i, t in enumerate(scheduler.timesteps):
        ve, noise = float(scheduler.sigmas[i]), torch.from_numpy(NOISE[i])
        seen, told, hat = scheduler.scale_model_input(x, t), float(t), ve * (1 + gamma)
        if ahead:
            seen = (x + noise * math.sqrt(hat**2 - ve**2)) / math.sqrt(hat**2 + 1)
            told = np.interp(math.log(hat), np.log(all_ve), np.arange(1000))
        raw = toy(torch, seen, torch.tensor(told, dtype=torch.float32))
        with mock.patch.object(sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, n=noise, **__: n):
            x = scheduler.step(raw, t, x, s_churn=s_churn).prev_sample
    return x.numpy()


@pytest.mark.parametrize("steps", [2, 20])
def test_euler_with_churn_is_diffusers_when_shown_the_same_latents(steps):
    """diffusers' own pipelines ask the network before they add the noise, against the paper, and so differ."""
    ours = sdjax_run(plan("euler", steps, SD, s_churn=3.0), NOISE)
    assert difference(ours, churned_by_diffusers(steps, 3.0, ahead=True)) <= BOUND
    assert difference(ours, churned_by_diffusers(steps, 3.0, ahead=False)) > 100 * BOUND


CHURN = {"s_churn": 6.0, "s_tmin": 0.3, "s_tmax": 9.0, "s_noise": 1.003}
OPTIONS = {
    "lms": [{}, {"order": 1}, {"order": 2}, {"order": 3}],
    "euler": [{}, {"s_churn": 4.0}, CHURN],
    "heun": [{}, {"s_churn": 4.0}, CHURN],
    "dpm2": [{}, {"s_churn": 4.0}, CHURN],
    "euler_ancestral": [{}, {"eta": 0.0}, {"eta": 0.6, "s_noise": 1.01}, {"eta": 1.3}],
    "dpm2_ancestral": [{}, {"eta": 0.0}, {"eta": 0.6, "s_noise": 1.01}],
    "dpmpp_2s_ancestral": [{}, {"eta": 0.0}, {"eta": 0.6, "s_noise": 1.01}, {"eta": 1.3}],
    "dpmpp_sde": [{}, {"eta": 0.0}, {"eta": 0.6, "s_noise": 1.01}],
    "dpmpp_3m_sde": [{}, {"eta": 0.0}, {"eta": 0.6}],
    "dpm_fast": [{}, {"eta": 0.6}, {"eta": 1.0}],
}
CHURNED = ("euler", "heun", "dpm2")  # these draw from torch, at every step whether they use it or not


def function(name):
    """k-diffusion's function, as one of (model, x, sigmas, **options)."""
    names = {"dpm2": "sample_dpm_2", "dpm2_ancestral": "sample_dpm_2_ancestral"}
    return fast if name == "dpm_fast" else getattr(k_diffusion(), names.get(name, f"sample_{name}"))


def fast(model, x, sigmas, **options):
    """sample_dpm_fast takes the ends of the sigmas and how many evaluations to make."""
    with in_float64():
        return k_diffusion().sample_dpm_fast(model, x, float(sigmas[-2]), float(sigmas[0]), len(sigmas) - 1, **options)


@contextlib.contextmanager
def in_float64():
    """For the functions that make their own sigmas."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def on_euler_levels(name):
    """The sampler on Euler's levels, so that timesteps are those that k-diffusion tells, not rounded ones."""
    euler, own = SAMPLERS["euler"], SAMPLERS[name]
    schedule = own.schedule if name == "dpm_fast" else euler.schedule
    return dataclasses.replace(own, schedule=schedule, reads=euler.reads, defaults=euler.defaults)


def against_k_diffusion(name, steps, config, schedule=None, **options):
    levels, noise = plan("euler", steps, config, schedule), NOISE.astype(np.float64)
    ours, ve = plan(on_euler_levels(name), steps, config, schedule, **options), levels.sigma / levels.alpha
    if name in CHURNED:
        used = (options.get("s_tmin", 0.0) <= v <= options.get("s_tmax", math.inf) for v in ve)
        drawn = iter(noise)
        randn_like = lambda x: torch.from_numpy(next(drawn)) if next(used) else torch.full_like(x, math.nan)  # noqa: E731
        with mock.patch.object(torch, "randn_like", randn_like):
            theirs = k_run(function(name), levels, config, **options)
    else:
        asked = for_both_parts(noise, ve) if name == "dpmpp_sde" else noise
        theirs = k_run(function(name), levels, config, None if name == "lms" else asked, **options)
    return difference(sdjax_run(ours, NOISE), theirs * ours.alpha[-1])  # theirs is x0 + ve e


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("schedule", ["leading", "trailing", "karras"])
def test_equal_to_k_diffusion(name, schedule):
    for prediction, steps in itertools.product(("epsilon", "v_prediction", "sample"), (2, 3, 4, 7, 20, 50)):
        assert against_k_diffusion(name, steps, {**SD, "prediction_type": prediction}, schedule) <= BOUND


@pytest.mark.parametrize(("name", "options"), [(name, o) for name in OPTIONS for o in OPTIONS[name]])
def test_options_are_those_of_k_diffusion(name, options):
    for steps in (2, 7, 20):
        assert against_k_diffusion(name, steps, SD, **options) <= BOUND


@pytest.mark.parametrize("name", ["dpmpp_2s_ancestral", "dpmpp_3m_sde", "dpm_fast", *CLASSES])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr(name, prediction):
    """From sigma 4096, where a network still sees a last trace of signal."""
    for steps in (2, 7, 20, 50):
        assert against_k_diffusion(name, steps, {**ZERO_SNR, "prediction_type": prediction}) <= BOUND


PID = {"pcoeff": 0.3, "icoeff": 0.6, "dcoeff": 0.1, "rtol": 0.005, "h_init": 0.5}


def k_adaptive(config, eta, **options):
    """(latents, info, timesteps asked for) of k-diffusion's adaptive sampler, for the first image alone."""
    ve, denoiser, asked = reference.clamped_sigmas(config), k_denoiser(config), []

    def model(x, sigma):
        asked.append(float(np.interp(np.log(float(sigma)), np.log(ve), np.arange(len(ve)))))
        return denoiser(x, sigma)

    x, noise = torch.from_numpy(X_T[:1].astype(np.float64)) * ve[-1], torch.from_numpy(NOISE[0, :1].astype(np.float64))
    options |= {"eta": eta, "noise_sampler": lambda *_: noise, "return_info": True, "disable": True}
    with in_float64():
        latents, info = k_diffusion().sample_dpm_adaptive(model, x, float(ve[0]), float(ve[-1]), **options)
    return latents.numpy(), info, asked


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"h_init": 3.0}, PID, {**PID, "order": 2, "eta": 0.7}])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "zero SNR"])
def test_adaptive_takes_the_steps_of_k_diffusion(prediction, options, monkeypatch):
    """A batch of one, both in float64: every attempt at the same noise, the same ones taken, the same latents."""
    config, asked = ZERO_SNR if prediction == "zero SNR" else {**SD, "prediction_type": prediction}, []

    def model(x, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t[0], ordered=True)
        return toy(jnp, x, t[0])

    monkeypatch.setattr(brownian, "increment", lambda *_: jnp.asarray(NOISE[0, 0], jnp.float64))
    with jax.enable_x64(True):
        ours = dpm_adaptive(model, X_T[:1].astype(np.float64), config, key=jax.random.key(0), **options)
        jax.effects_barrier()
    latents, info, wanted = k_adaptive(config, **{"eta": 0.0, **options})
    np.testing.assert_allclose(asked, wanted, atol=1e-4)  # a callback may hand out float32
    assert (int(ours.accepted[0]), int(ours.rejected[0])) == (info["n_accept"], info["n_reject"])
    assert int(ours.evaluations[0]) == info["nfe"] and bool(ours.finished[0])
    own_scale = 1 / math.sqrt(1 + reference.clamped_sigmas(config)[0] ** 2)
    assert difference(np.asarray(ours.latents), latents * own_scale) <= 1e-9


def main():
    """Print the largest difference per sampler and where it lies, against each of the two."""
    jax.config.update("jax_platforms", "cpu")
    rows = {}
    for (name, schedule, prediction), steps in itertools.product(cases(), STEPS):
        error = against_diffusers(name, steps, {**SD, "prediction_type": prediction}, schedule)
        rows.setdefault(("diffusers", name), []).append((error, steps, schedule, prediction))
    for name, schedule, steps in itertools.product(OPTIONS, ("leading", "trailing", "karras"), STEPS[1:]):
        error = against_k_diffusion(name, steps, SD, schedule)
        rows.setdefault(("k-diffusion", name), []).append((error, steps, schedule, "epsilon"))
    for (whom, name), found in rows.items():
        error, *where = max(found)
        print(f"{whom:12s} {name:20s} {error:.1e}", *where)


if __name__ == "__main__":
    main()
