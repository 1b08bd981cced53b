"""One run of the toy network by each side: sdjax's plan, a diffusers scheduler, a k-diffusion function.

All start from the same unit Gaussian `X_T`, and stochastic ones are handed the same draws, in the order in which
they ask for them. Latents are [b, h, w, c] float32 here as there: the toy knows no channel order.
"""

import contextlib
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sdjax.diffusion.scan import run
from tests import reference
from tests.reference import SHAPE, toy

BOUND = 1e-4  # relative: diffusers' betas, products and sigmas are float32
X_T = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
FLAGS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
}


def with_schedule(config, schedule):
    """The config that diffusers needs for what sdjax calls `schedule`."""
    if schedule is None:
        return config
    return {**config, FLAGS[schedule]: True} if schedule in FLAGS else {**config, "timestep_spacing": schedule}


def difference(a, b):
    """Largest difference, relative to the largest element of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())


@jax.jit
def run_padded(table, x_T, noise):
    return run(table, lambda x, t: toy(jnp, x, t), x_T, None, noise)


def sdjax_run(the_plan, noise=None, length=128, double=False):
    """Latents, float32 or float64; one compiled program for every case of a length: the draws, too, are padded."""
    dtype = np.float64 if double else np.float32
    padded = np.zeros((length, *SHAPE), dtype)
    if noise is not None:
        padded[: the_plan.draws] = noise[: the_plan.draws]
    with jax.enable_x64(double):
        return np.asarray(run_padded(the_plan.table(length, dtype), X_T.astype(dtype), padded))


def handed_out(noise):
    """A stand-in for any torch function that draws: the next of `noise`, whatever the arguments."""
    draws = iter(() if noise is None else noise)
    return lambda *_, **__: torch.from_numpy(np.asarray(next(draws), np.float32))


def diffusers_run(scheduler, steps, config=None, noise=None, double=False, **step):
    """(timesteps, latents) of diffusers' own loop, as its pipelines write it.

    Args:
      scheduler: a class, made from `config`, or a scheduler that is made already.
      noise: the draws [n, *SHAPE] for whatever the class takes from `randn_tensor`.
      double: its steps in float64 from its float32 sigmas, for classes that lose more than the tables do.
      step: further arguments of its `step`, such as eta.
    """
    scheduler = scheduler.from_config(config) if isinstance(scheduler, type) else scheduler
    module = sys.modules[type(scheduler).__module__]
    drawing = mock.patch.object(module, "randn_tensor", handed_out(noise)) if hasattr(module, "randn_tensor") else None
    with drawing or contextlib.nullcontext():
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):  # else it looks the first timestep up, and finds its second visit
            scheduler.set_begin_index(0)
        if double:
            scheduler.sigmas = scheduler.sigmas.double()
        x = torch.from_numpy(X_T.astype(np.float64) if double else X_T) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            raw = toy(torch, scheduler.scale_model_input(x, t), t.to(torch.float32))
            x = scheduler.step(raw, t, x, **step).prev_sample
    return scheduler.timesteps.numpy(), x.numpy()


def k_diffusion():
    """k-diffusion's sampling.py alone: its package asks for torchvision, which nothing here needs."""
    if "k_diffusion.sampling" not in sys.modules:
        folder = Path(importlib.util.find_spec("k_diffusion").submodule_search_locations[0])
        utils = types.SimpleNamespace(append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)])
        package = types.ModuleType("k_diffusion")
        package.utils = utils
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
        module = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {"k_diffusion": package}):
            spec.loader.exec_module(module)
        sys.modules["k_diffusion.sampling"] = module
    return sys.modules["k_diffusion.sampling"]


def k_denoiser(config):
    """The toy as k-diffusion's model: (x at the variance-exploding scale, sigma [b]) -> clean latents, in float64.

    Told the fractional timestep, linear in log sigma between training levels.
    """
    sigmas = torch.from_numpy(reference.clamped_sigmas(config))

    def denoiser(x, sigma):
        s = float(sigma.reshape(-1)[0])
        t = np.interp(np.log(s), np.log(sigmas.numpy()), np.arange(len(sigmas)))
        scaled = x / np.sqrt(s * s + 1)
        return reference.x0_and_eps(config, toy(torch, scaled, torch.tensor(t)), scaled, 1 / (s * s + 1))[0]

    return denoiser


def k_run(function, the_plan, config, noise=None, sigmas=None, **options):
    """float64 latents of a k-diffusion function from the plan's start, on its levels or on `sigmas` given.

    `noise`: the draws, in the order in which the function asks its noise_sampler for them. The result stays on the
    variance-exploding scale: the plan's, x = alpha x0 + sigma e, divided by its last alpha.
    """
    if sigmas is None:
        visited = the_plan.sigma / the_plan.alpha
        sigmas = np.append(visited[:-1][the_plan.evaluate], visited[-1])
    sigmas = torch.from_numpy(np.asarray(sigmas, np.float64))
    start = the_plan.weights[int(np.argmax(the_plan.evaluate)), 0] * np.sqrt(1 + float(sigmas[0]) ** 2)
    x = torch.from_numpy(X_T.astype(np.float64)) * start
    if noise is not None:
        drawn = iter(noise)
        options["noise_sampler"] = lambda *_: torch.from_numpy(np.asarray(next(drawn), np.float64))
    return function(k_denoiser(config), x, sigmas, disable=True, **options).numpy()
