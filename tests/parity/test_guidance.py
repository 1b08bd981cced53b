"""Guidance rescale against diffusers' own function."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sdjax.diffusion.guiders.cfg import combine


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5, 15.0])
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_is_diffusers(scale, phi):
    rng = np.random.default_rng(0)
    u = rng.standard_normal((3, 8, 6, 4)).astype(np.float32)
    c = (rng.standard_normal((3, 8, 6, 4)) * np.array([0.5, 1, 2])[:, None, None, None] + 0.3).astype(np.float32)
    plain = torch.from_numpy(u + scale * (c - u))
    want = rescale_noise_cfg(plain, torch.from_numpy(c), guidance_rescale=phi).numpy()
    made = np.asarray(combine(jnp.asarray(u), jnp.asarray(c), scale, jnp.full(3, phi)))
    assert np.abs(made - want).max() <= 2e-6 * np.abs(want).max()
