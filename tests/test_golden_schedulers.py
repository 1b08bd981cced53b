"""sdjax's plans against what diffusers gave, stored: the parity check of a machine without torch.

golden/schedulers.npz comes from golden/make_schedulers.py, which see.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.plan import plan
from sdjax.diffusion.scan import run
from tests.reference import SD, SHAPE, ZERO_SNR, draws, toy

SPACINGS = ("leading", "trailing", "linspace")


def _cases():
    """(sampler, steps, config, schedule, eta)"""
    for steps in (1, 2, 7, 20, 50):
        for name in ("ddim", "pndm", "euler", "dpmpp_2m"):
            for schedule in (*SPACINGS, *(["karras"] if name in ("euler", "dpmpp_2m") else [])):
                for kind in ("epsilon", "v_prediction", "sample"):
                    if (name, kind) != ("pndm", "sample"):
                        yield name, steps, {**SD, "prediction_type": kind}, schedule, 0.0
        for name in ("ddim", "euler", "dpmpp_2m"):
            yield name, steps, ZERO_SNR, "trailing", 0.0
        yield "ddim", steps, SD, "leading", 0.5
        yield "ddim", steps, SD, "leading", 1.0


CASES = list(_cases())


def label(case):
    name, steps, config, schedule, eta = case
    snr = "/zero_snr" if config.get("rescale_betas_zero_snr") else ""
    return f"{name}/{steps}/{config['prediction_type']}/{schedule}/{eta:g}{snr}"


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "schedulers.npz") as file:
        return dict(file)


@jax.jit
def run_padded(table, x_T, noise):
    return run(table, lambda x, t: toy(jnp, x, t), x_T, None, noise)


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "dpmpp_2m"])
def test_equal_to_diffusers(golden, name):
    """1e-4, but for the rounding of diffusers' Euler at sigma 4096; see `parity/test_schedulers.py`."""
    for case in [c for c in CASES if c[0] == name]:
        _, steps, config, schedule, eta = case
        p = plan(name, steps, config, schedule, eta=eta)
        np.testing.assert_allclose(p.timesteps, golden[label(case) + "/timesteps"], rtol=1e-6, atol=2e-4)
        noise = np.zeros((64, *SHAPE), np.float32)
        noise[: p.draws] = draws(p.draws)
        ours, theirs = (
            np.asarray(run_padded(p.table(64), golden["x_T"], noise)),
            golden[label(case) + "/latents"],
        )
        coarse = name == "euler" and steps <= 2 and config is ZERO_SNR
        assert np.abs(ours - theirs).max() <= (5e-4 if coarse else 1e-4) * np.abs(theirs).max(), label(case)
