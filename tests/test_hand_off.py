"""A run in two parts: what changes along it goes on where it was, and noise is not drawn twice."""

import jax
import numpy as np
import pytest

import sdjax

ASKED = {"steps": 8, "sampler": "euler", "decode": False, "progress": False, "guidance_scale": 4.0}

# Latents of the tiny checkpoint's size, and a mask of their right half.
PICTURE = np.random.default_rng(3).standard_normal((1, 8, 8, 4)).astype(np.float32)
MASK = np.zeros((1, 8, 8, 1), np.float32)
MASK[:, :, 4:] = 1


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"guidance_schedule": "linear"},
        {"guidance_schedule": "interval:0:0.4"},
        {"guidance_schedule": "noise_interval:0.5:3"},
        {"prompt": "a [red:blue:0.75] circle", "prompt_style": "a1111"},
        {"prompt": "a [red|blue|green] circle", "prompt_style": "a1111"},
        {"sampler": "heun", "prompt": "a [red:blue:0.75] circle", "prompt_style": "a1111"},
        {"steps": [8, 6], "prompt": ["a red circle", "a [red:blue:0.75] circle"], "prompt_style": "a1111"},
        {"image": PICTURE, "strength": 0.9},
        {"image": PICTURE, "mask": MASK},
        {"image": PICTURE, "mask": MASK, "strength": 0.9},
    ],
    ids=str,
)
def test_a_model_that_refines_itself_makes_the_whole_run(sd, changed):
    asked = {"prompt": "a red circle", **ASKED, **changed}
    whole = sd.generate(**asked).latents
    for start in (0.5, 0.8):
        parted = sd.generate(**asked, refiner=sd, refiner_start=start).latents
        np.testing.assert_allclose(parted, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["jax", "torch_cpu", "torch_cuda"])
def test_two_calls_are_the_ensemble(sd, source):
    asked = {"prompt": "a red circle", **ASKED, "sampler": "euler_ancestral", "noise_source": source, "seed": 5}
    together = sd.generate(**asked, refiner=sd, refiner_start=0.5).latents
    half = sd.generate(**asked, denoising_end=0.5).latents
    by_hand = sd.generate(**asked, denoising_start=0.5, latents=half).latents
    np.testing.assert_allclose(by_hand, together, rtol=1e-5, atol=1e-5)
    if source != "jax":  # whose own noise of a second part is apart from the first's
        np.testing.assert_allclose(together, sd.generate(**asked).latents, rtol=1e-4, atol=1e-4)


def test_no_two_parts_draw_the_same_noise(sd):
    """Three parts of a run of lcm, whose noise is fresh at every step: keys of their own."""
    given = {"prompt": "a", "steps": 9, "sampler": "lcm", "latents": np.zeros((1, 8, 8, 4))}
    cuts = ({}, {"denoising_start": 0.3, "denoising_end": 0.6}, {"denoising_start": 0.6})
    keys = [jax.random.key_data(sd.request(**given, **cut).keys()).tolist() for cut in cuts]
    assert len({str(key) for key in keys}) == 3


@pytest.mark.parametrize("start", [None, 0.0, 1.0, True, "0.8"])
def test_a_wrong_refiner_start(sd, start):
    with pytest.raises(ValueError, match="refiner_start must be a number between 0 and 1"):
        sd.generate("a", refiner=sd, refiner_start=start)


def test_settings_name_the_refiner(sd):
    out = sd.generate("a", **ASKED | {"decode": True}, refiner=sd, refiner_start=0.5)
    settings = sdjax.read_settings(out.images[0])
    assert settings["refiner"] == sd.name and settings["refiner_start"] == 0.5
    with pytest.raises(ValueError, match="refiner must be a loaded checkpoint"):
        sd.generate(**settings)
    again = sd.generate(**settings | {"refiner": sd}, decode=False)
    np.testing.assert_array_equal(again.latents, out.latents)


def test_a_stop_on_either_side_of_the_hand_off(sd):
    """Evaluations are counted through; what is kept are the clean latents last predicted."""
    asked = {"prompt": "a red circle", **ASKED}
    steps = sd.generate(**asked, show_steps=True).steps
    for count in (3, 4, 6):
        made = sd.generate(**asked, refiner=sd, refiner_start=0.5, stop_after=count)
        np.testing.assert_allclose(made.latents, steps[count - 1].denoised, rtol=1e-4, atol=1e-4)
        assert made.settings["stop_after"] == count
