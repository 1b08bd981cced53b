"""The solvers that walk whole timesteps against diffusers' schedulers, made from the same config, on the toy network.

diffusers' tables are float32; `python -m tests.parity.test_ddim_family` prints what that leaves.
"""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)

from sdjax.diffusion import solvers
from sdjax.diffusion.noise import Level
from sdjax.diffusion.plan import plan
from sdjax.diffusion.samplers import Sampler
from sdjax.diffusion.schedule import Schedule
from tests import reference
from tests.parity.toy import BOUND, X_T, difference, diffusers_run, sdjax_run, with_schedule
from tests.reference import SD, ZERO_SNR, draws, toy

CLASSES = {
    "ddim": DDIMScheduler,
    "ddim_inverse": DDIMInverseScheduler,
    "ddpm": DDPMScheduler,
    "pndm_prk": PNDMScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
LEADING, ALL = ("leading", "trailing"), ("leading", "trailing", "linspace")
SCHEDULES = {"ddim_inverse": LEADING, "ddpm": ALL, "pndm_prk": ALL, "lcm": (None,), "tcd": (None,)}
STEPS = {
    "ddim_inverse": (2, 3, 7, 20, 50),
    "ddpm": (2, 3, 7, 20, 50),
    "pndm_prk": (4, 5, 8, 20, 50),
    "lcm": (1, 2, 4, 7, 50),
    "tcd": (1, 2, 4, 7, 50),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISE = draws(50).astype(np.float32)


def cases():
    for name, spacings in SCHEDULES.items():
        for schedule, prediction in itertools.product(spacings, PREDICTIONS):
            if (name, prediction) != ("pndm_prk", "sample"):  # diffusers' PNDM refuses it
                yield name, schedule, prediction


def check(name, steps, config, schedule=None, **step):
    """The relative difference of the results; the timesteps must be the same."""
    if name == "pndm_prk":
        config = {**config, "skip_prk_steps": False}
    ours = plan(name, steps, config, schedule, **step)
    timesteps, theirs = diffusers_run(CLASSES[name], steps, with_schedule(config, schedule), NOISE, **step)
    np.testing.assert_array_equal(ours.timesteps, timesteps)
    return difference(sdjax_run(ours, NOISE), theirs)


@pytest.mark.parametrize(("name", "schedule", "prediction"), list(cases()))
def test_equal_to_diffusers(name, schedule, prediction):
    for steps in STEPS[name]:
        assert check(name, steps, {**SD, "prediction_type": prediction}, schedule) <= BOUND


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim_inverse", "ddpm", "lcm", "tcd"])
def test_zero_terminal_snr(name, prediction):
    for steps in STEPS[name]:
        assert check(name, steps, {**ZERO_SNR, "prediction_type": prediction}) <= BOUND


@pytest.mark.parametrize("name", ["ddpm", "lcm", "tcd"])
@pytest.mark.parametrize("timesteps", [[999], [999, 749, 499, 259, 20], [601, 90, 3, 0]])
def test_timesteps_of_the_callers_own(name, timesteps):
    for config in (SD, ZERO_SNR):
        scheduler = CLASSES[name].from_config(config)
        scheduler.set_timesteps = partial(scheduler.set_timesteps, timesteps=timesteps)
        told, theirs = diffusers_run(scheduler, None, noise=NOISE)
        ours = plan(name, None, config, timesteps=timesteps)
        np.testing.assert_array_equal(ours.timesteps, told)
        assert difference(sdjax_run(ours, NOISE), theirs) <= BOUND


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_class_defaults_and_other_betas(name):
    """Missing keys take the class's own defaults: ddim_inverse and ddpm clip, lcm and tcd bring Stable Diffusion's
    betas, ddim_inverse starts clean."""
    odd = {**SD, "trained_betas": list(np.linspace(1e-4, 0.015, 500)), "num_train_timesteps": 500}
    configs = [
        {},
        {"beta_schedule": "squaredcos_cap_v2"},
        {**SD, "beta_schedule": "linear", "set_alpha_to_one": True, "steps_offset": 0},
        odd,
    ]
    for config, steps in itertools.product(configs, (4, 16)):
        assert check(name, steps, config) <= BOUND


@pytest.mark.parametrize("name", ["ddim_inverse", "ddpm", "lcm"])
def test_clipping(name):
    for limit, steps in itertools.product((0.7, 2.0), (4, 20)):
        assert check(name, steps, {**SD, "clip_sample": True, "clip_sample_range": limit}) <= BOUND


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm"])
@pytest.mark.parametrize(("ratio", "largest"), [(0.995, 1.0), (0.9, 2.5), (0.5, 1.2), (0.3, 0.8)])
def test_dynamic_thresholding(name, ratio, largest):
    """Before clipping, which is on as well, as in the classes; a largest value below 1 wins over the 1."""
    bound = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
    for steps in (2, 7, 20):
        assert check(name, steps, {**SD, "clip_sample": True, **bound}) <= BOUND


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("schedule", ALL)
def test_ddpm_variances(variance, schedule):
    for steps in STEPS["ddpm"]:
        assert check("ddpm", steps, {**SD, "variance_type": variance, "clip_sample": True}, schedule) <= BOUND


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("original", [50, 140, 1000])
def test_tcd_gamma_and_distilled_timesteps(eta, original):
    """140 timesteps include 90 and its like, where 0.7 t is whole only in float32."""
    for steps in (1, 2, 4, 8, 50):
        assert check("tcd", steps, {**SD, "original_inference_steps": original}, eta=eta) <= BOUND


@pytest.mark.parametrize(("original", "scaling"), [(50, 10.0), (100, 0.01), (8, 1e-4), (1000, 3.0)])
def test_lcm_boundary_condition(original, scaling):
    """A small timestep_scaling makes the trace of x a large part; 1000 reaches timestep 0, where f is x."""
    config = {**SD, "original_inference_steps": original, "timestep_scaling": scaling}
    for steps in (1, 2, 4, 8):
        assert check("lcm", steps, config) <= BOUND


def test_pndm_prk_evaluates_as_often_as_diffusers():
    assert [plan("pndm_prk", steps, SD).evaluations for steps in (4, 20, 50)] == [13, 29, 59]


def own_levels(steps):
    """A sampler on IPNDMScheduler's own levels, from its second on: at the first it divides 0 by 1e-8."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    levels = [
        Level(float(np.sqrt(1 - s**2)), float(s), float(t))
        for s, t in zip(np.float64(scheduler.betas), [*scheduler.timesteps, 0.0], strict=True)
    ][1:-1]
    pairs = tuple(itertools.pairwise(levels))
    schedule = Schedule(pairs, 1.0, levels[-1], float)
    return Sampler(solvers.ipndm, lambda *_: schedule, frozenset(["prediction_type"])), levels


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 20, 50])
def test_ipndm_on_the_levels_of_diffusers(steps):
    """IPNDMScheduler knows one schedule, no training levels and v-predictions only. On that schedule, without its
    first step (0 / 0) and its last (Euler here, as in ComfyUI), the latents are the same."""
    sampler, levels = own_levels(steps)
    ours = sdjax_run(plan(sampler, len(levels) - 1, {"prediction_type": "v_prediction"}))
    assert difference(ours, ipndm_scheduler_run(steps)) <= BOUND


def ipndm_scheduler_run(steps):
    import torch

    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(1)
    x = torch.from_numpy(X_T)
    for t in scheduler.timesteps[1:-1]:
        x = scheduler.step(toy(torch, x, t), t, x).prev_sample
    return x.numpy()


def ipndm_by_hand(config, n, x, max_order):
    """ComfyUI's definition, step by step in float64."""
    ts, sigmas, start = reference.euler_levels(config, n)
    x, past = x * start, []
    weights = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}
    for i, t in enumerate(ts):
        denoised = reference.denoise_ve(config, lambda x, t: toy(np, x, t), x, sigmas[i], t)
        past = [(x - denoised) / sigmas[i], *past][:max_order]
        mixed = sum(w * d for w, d in zip(weights[len(past)], past, strict=True))
        x = denoised if sigmas[i + 1] == 0 else x + (sigmas[i + 1] - sigmas[i]) * mixed
    return x


@pytest.mark.parametrize("max_order", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", [*ALL, "karras"])
def test_ipndm_on_the_levels_of_stable_diffusion(max_order, schedule):
    for steps, prediction in itertools.product((2, 7, 20, 50), PREDICTIONS):
        config = {**SD, "prediction_type": prediction}
        exact = ipndm_by_hand(with_schedule(config, schedule), steps, X_T.astype(np.float64), max_order)
        ours = sdjax_run(plan("ipndm", steps, config, schedule, max_order=max_order))
        assert difference(ours, exact) <= 1e-5


def main():
    """Print the largest differences per sampler and where they lie."""
    jax.config.update("jax_platforms", "cpu")
    for name in SCHEDULES:
        rows = [
            (check(name, steps, {**SD, "prediction_type": prediction}, schedule), steps, schedule, prediction)
            for case, schedule, prediction in cases()
            for steps in STEPS[name]
            if case == name
        ]
        for error, *where in sorted(rows, key=lambda row: -row[0])[:3]:
            print(f"{name:12s} {error:.1e}", *where)


if __name__ == "__main__":
    main()
