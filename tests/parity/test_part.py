"""Hand-over within a run against diffusers: base for the first share, refiner for the rest, on SDXL's scheduler config.

Each model is the toy, with a scheduler of its own, as two pipelines have. Which timesteps run is the pipelines' rule;
the refiner's is called from StableDiffusionXLImg2ImgPipeline itself. Schedulers of the Euler family hand over
x0 + ve e, the others alpha x0 + sigma e, which sdjax does always: on one schedule that is the same run. On two whose
levels do not meet, diffusers' Euler family keeps the picture's own scale, so its refiner gets our latents times the
quotient of the two alphas.
"""

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)

from sdjax.config.presets import PRESETS
from sdjax.diffusion.plan import plan
from tests.parity.toy import X_T, difference, handed_out, run_padded
from tests.reference import SHAPE, draws, toy

SDXL = PRESETS["sdxl"].scheduler
EXPLODING = {  # x0 + ve e between steps
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm2": KDPM2DiscreteScheduler,
}
PRESERVING = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpmpp_3m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "deis": DEISMultistepScheduler,
    "lcm": LCMScheduler,
}
CLASSES = EXPLODING | PRESERVING
CONFIGS = {"dpmpp_3m": {"solver_order": 3}, "dpm2": {"timestep_spacing": "trailing"}}
ONE_A_STEP = [name for name in CLASSES if name not in ("heun", "dpm2")]


def scheduler_for(name, steps, **changes):
    scheduler = CLASSES[name].from_config({**SDXL, **CONFIGS.get(name, {}), **changes})
    scheduler.set_timesteps(steps)
    return scheduler


def refiner_timesteps(scheduler, share):
    """Those that the refiner's own pipeline runs; it also tells the scheduler where it begins."""
    holder = SimpleNamespace(scheduler=scheduler)
    return StableDiffusionXLImg2ImgPipeline.get_timesteps(holder, None, None, None, denoising_start=share)[0]


def base_timesteps(scheduler, share):
    """StableDiffusionXLPipeline.__call__, step 8.1."""
    if hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the timestep
        scheduler.set_begin_index(0)
    cutoff = int(round(1000 - share * 1000))
    return [t for t in scheduler.timesteps if t >= cutoff]


def loop(scheduler, timesteps, x, noise=None):
    """The pipelines' denoising loop, its draws handed out."""
    module = sys.modules[type(scheduler).__module__]
    with mock.patch.object(module, "randn_tensor", handed_out(noise), create=True):
        for t in timesteps:
            raw = toy(torch, scheduler.scale_model_input(x, t), t.to(torch.float32))
            x = scheduler.step(raw, t, x).prev_sample
    return x


def ours(the_plan, x, noise):
    padded = np.zeros((128, *SHAPE), np.float32)
    padded[: the_plan.draws] = noise[: the_plan.draws]
    return np.asarray(run_padded(the_plan.table(128), np.asarray(x, np.float32), padded))


def by_rule(base, refiner, share):
    """The timesteps of base and refiner as the pipelines cut them."""
    return base_timesteps(base, share), refiner_timesteps(refiner, share)


def by_steps(base, refiner, share):
    """The same of Heun, whose every step is two entries, cut between two steps."""
    cut = 2 * sum(t >= round(1000 - share * 1000) for t in base.timesteps[::2])
    base.set_begin_index(0)
    refiner.set_begin_index(cut)
    return base.timesteps[:cut], refiner.timesteps[cut:]


def compare(name, steps, refiner_steps, share, cut=by_rule, **changes):
    """Relative differences of the latents handed over and of the last ones."""
    config = {**SDXL, **CONFIGS.get(name, {}), **changes}
    first = plan(name, steps, config, denoising_end=share)
    second = plan(name, refiner_steps, config, denoising_start=share)
    noise = draws(first.draws + second.draws).astype(np.float32)

    base, refiner = scheduler_for(name, steps, **changes), scheduler_for(name, refiner_steps, **changes)
    told, told_then = cut(base, refiner, share)
    np.testing.assert_allclose(first.timesteps, [float(t) for t in told], rtol=1e-6, atol=2e-4)
    np.testing.assert_allclose(second.timesteps, [float(t) for t in told_then], rtol=1e-6, atol=2e-4)
    theirs = loop(base, told, torch.from_numpy(X_T) * base.init_noise_sigma, noise[: first.draws])
    last = loop(refiner, told_then, theirs, noise[first.draws :])

    x = ours(first, X_T, noise)
    scale, meeting = (first.alpha[-1], second.start.alpha / first.alpha[-1]) if name in EXPLODING else (1.0, 1.0)
    middle = difference(x, theirs.numpy() * scale)
    return middle, difference(ours(second, x * meeting, noise[first.draws :]), last.numpy())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ONE_A_STEP)
def test_equal_to_diffusers(name, spacing):
    for steps, share in ((50, 0.8), (25, 0.8), (30, 0.8), (12, 0.6)):
        assert max(compare(name, steps, steps, share, timestep_spacing=spacing)) <= 1e-5


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc"])
def test_karras(name):
    for steps, share in ((25, 0.8), (12, 0.5)):
        assert max(compare(name, steps, steps, share, use_karras_sigmas=True)) <= 1e-5


@pytest.mark.parametrize("name", ONE_A_STEP)
def test_a_refiner_with_steps_of_its_own(name):
    """Its first level lies below the one reached."""
    for steps, refiner_steps, share in ((50, 25, 0.8), (20, 50, 0.7)):
        assert max(compare(name, steps, refiner_steps, share)) <= 1e-5


def test_two_evaluations_a_step():
    """Heun cut between steps; KDPM2 at a share where diffusers' rule cuts there, too."""
    for steps, share in ((50, 0.8), (25, 0.8), (12, 0.6)):
        assert max(compare("heun", steps, steps, share, by_steps)) <= 1e-5
    assert max(compare("dpm2", 20, 20, 0.54)) <= 1e-5


def test_where_diffusers_cuts_a_step_in_two():
    """Heun's base then ends by half a step, which its refiner makes again from latents that have made it."""
    base, refiner = scheduler_for("heun", 50), scheduler_for("heun", 50)
    told, told_then = by_rule(base, refiner, 0.8)
    assert len(told) % 2 and told[-1] == told_then[0] == 201
    assert plan("heun", 50, SDXL, denoising_end=0.8).timesteps[-2:].tolist() == [201, 181]
    assert plan("heun", 50, SDXL, denoising_start=0.8).timesteps[0] == 181
