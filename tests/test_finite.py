"""What leaves the range of float16 is made in float32; a picture of NaN all the same is told, with the reason."""

import dataclasses
import re
import warnings
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import parallel
from sdjax.images.pixels import to_uint8
from sdjax.model import finite
from sdjax.sampling.lost import lost_in_run

TWO = ["a red circle", "a blue square"]
ASKED = {"steps": 3, "sampler": "euler", "progress": False}
LATENTS = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def half(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, dtype="float16", compilation_cache=False)


@pytest.fixture(scope="module")
def single(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint, compilation_cache=False)


def changed(sd, component, names, change):
    """`sd` with one of its parameters changed, in float32."""

    def inside(tree, path):
        return (
            change(jnp.asarray(tree, jnp.float32)) if not path else {**tree, path[0]: inside(tree[path[0]], path[1:])}
        )

    params = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), sd.params[component])
    return dataclasses.replace(sd, params={**sd.params, component: inside(params, names)})


def overflowing(sd, times=1e5):
    """A VAE whose decoder's middle reaches 1e5 (CASES.md A 24), and whose norms take it back."""
    return changed(sd, "vae", ("decoder", "conv_in", "kernel"), lambda kernel: kernel * times)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_decoder_that_overflows_in_float16_runs_in_float32(half, single, quiet):
    expected = np.asarray(overflowing(single).decode(LATENTS))
    assert 100 < to_uint8(expected).mean() < 155
    made = np.asarray(overflowing(half).decode(LATENTS))
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_pictures_that_were_finite_keep_their_bits(half, quiet):
    """One of two overflows: by its latents, which are large."""
    alone = np.asarray(half.decode(LATENTS))
    both = np.stack([LATENTS[0], LATENTS[1] * 1e5])
    made = np.asarray(half.decode(both))
    np.testing.assert_array_equal(made[0], alone[0])
    assert np.isfinite(made).all()


@pytest.mark.parametrize("many", [parallel.spread, parallel.shard])
def test_on_many_devices_it_starts_from_the_parameters_that_were_loaded(half, single, quiet, many):
    """Rounded to float16 first, they would give pixels of 6e-4 beside these."""
    expected = np.asarray(overflowing(single).decode(LATENTS))
    np.testing.assert_allclose(np.asarray(many(overflowing(half), 1).decode(LATENTS)), expected, atol=1e-5)


def test_an_infinity_after_the_last_norm_is_no_white(half, single, quiet):
    """The last convolution reaches 1e5: clipped, an infinity would be as white or as black as any number above 1."""
    own = partial(changed, component="vae", names=("decoder", "conv_out", "bias"), change=lambda bias: bias + 1e5)
    np.testing.assert_array_equal(np.asarray(own(half).decode(LATENTS)), 1.0)
    np.testing.assert_array_equal(np.asarray(own(single).decode(LATENTS)), 1.0)


def test_an_encoder_that_overflows_in_float16_runs_in_float32(half, single, quiet):
    own = partial(changed, component="vae", names=("encoder", "conv_in", "kernel"), change=lambda kernel: kernel * 1e6)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(own(half).encode(pixels), own(single).encode(pixels), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the VAE of tiny encodes this picture as NaN or infinity, even in float32"):
        half.encode(pixels * np.nan)


def test_a_text_encoder_that_overflows_in_float16_runs_in_float32(half, single, quiet):
    own = partial(
        changed, component="text_encoder", names=("text_model", "embeddings", "token_embedding", "embedding"),
        change=lambda table: table * 1e6,
    )  # fmt: skip
    np.testing.assert_allclose(own(half).encode_prompt(TWO), own(single).encode_prompt(TWO), atol=1e-5)
    broken = changed(half, "text_encoder", ("text_model", "final_layer_norm", "bias"), lambda bias: bias * np.nan)
    with pytest.raises(ValueError, match="text_encoder gives NaN or infinity, even in float32"):
        broken.encode_prompt(TWO)


def told(call) -> tuple[str, object]:
    """The one warning of a call, and what it gave."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = call()
    assert [one.category for one in said] == [UserWarning] and said[0].filename == __file__, [*map(str, said)]
    return str(said[0].message), made


@pytest.mark.parametrize("more", [{}, {"stop_after": 2}, {"decode": False}, {"show_steps": 2}])
def test_a_guidance_scale_beyond_float32_is_told(single, more):
    """CASES.md B 16; picture 0 is as it would be without its neighbour."""
    message, made = told(lambda: single.generate(TWO, guidance_scale=[3.0, 1e38], **ASKED, **more))
    assert re.search(r"black .*picture 1: guidance_scale 1e\+38 .* 5 to 15 is usual", message)
    assert np.isfinite(made.latents[0]).all() and not np.isfinite(made.latents[1]).all()
    if made.pixels is not None:
        assert made.pixels[0].std() > 1 and not made.pixels[1].any()


def test_a_guidance_scale_whose_picture_stays_finite_is_told(single):
    """1e30: the VAE's first norm makes a flat picture of it."""
    message, _ = told(lambda: single.generate(TWO, guidance_scale=1e30, **ASKED))
    assert "pictures 0 and 1: guidance_scale 1e+30" in message


@pytest.mark.parametrize("setting", [jax.debug_nans, jax.debug_infs])
def test_jaxs_search_for_nans_does_not_stop_what_is_told(single, setting):
    """It would run a program again with arguments that were donated, and raise of those."""
    with setting(True):
        message, made = told(lambda: single.generate(TWO, guidance_scale=[3.0, 1e38], **ASKED))
    assert "picture 1: guidance_scale 1e+38" in message
    assert made.pixels[0].std() > 1


def test_latents_of_no_picture_are_told_though_their_pixels_are_numbers(single):
    message, made = told(lambda: single.decode(np.stack([LATENTS[0], LATENTS[1] * 1e30])))
    assert "picture 1: its latents are NaN, infinite or beyond 1e+06" in message and "picture 0" not in message
    assert np.isfinite(np.asarray(made)).all()


def test_a_weight_beyond_float32_is_told(single):
    prompts = [TWO[0], f"a ({TWO[1]}:{'9' * 38})"]
    message, _ = told(lambda: single.generate(prompts, prompt_style="comfy", **ASKED))
    assert re.search(r"picture 1: a weight of 1e\+38 in its prompt is too much", message)


def test_a_unet_that_overflows_in_float16_is_told(half, single):
    """The words alone: a float16 U-Net would have to be compiled."""
    asked = SimpleNamespace(guidance_scales=[7.5, 7.5], image_scales=None, branches=[()] * 2, style="plain")
    lost = lost_in_run(half.networks, asked, np.stack([LATENTS[0], LATENTS[1] * np.inf]))
    assert list(lost) == [1]
    assert "the U-Net of tiny leaves the range of float16, which ends at 65,504" in lost[1]
    assert "dtype='bfloat16' or 'float32'" in lost[1]
    assert "the U-Net of tiny left all bounds in float32" in lost_in_run(single.networks, asked, LATENTS * 1e7)[0]


def test_a_vae_that_is_broken_is_told(single):
    own = changed(single, "vae", ("decoder", "conv_out", "bias"), lambda bias: bias * np.nan)
    message, made = told(lambda: own.generate(TWO, **ASKED))
    assert "pictures 0 and 1: the VAE of tiny gives NaN" in message and not made.pixels.any()
    assert "the VAE of tiny gives NaN" in told(lambda: own.decode(LATENTS))[0]


def test_latents_that_are_nan_are_told_apart_from_the_vae(single):
    given = np.stack([LATENTS[0], LATENTS[1] * np.nan])
    message, made = told(lambda: single.decode(given))
    assert "picture 1: its latents are NaN" in message and np.isfinite(np.asarray(made)[0]).all()


def test_previews_of_nan_are_black_and_numpy_is_silent(single, quiet):
    assert not single.viewer.linear(LATENTS * np.nan).any()
    assert not to_uint8(np.full((1, 1, 3), np.nan)).any()


def test_decode_can_be_traced(single):
    """What is being traced cannot be looked at."""
    assert jax.eval_shape(jax.grad(lambda z: single.decode(z).sum()), jnp.asarray(LATENTS)).shape == LATENTS.shape


def test_numbers_in_words():
    assert finite._numbered([2]) == "picture 2"
    assert finite._numbered([0, 1, 5]) == "pictures 0, 1 and 5"
