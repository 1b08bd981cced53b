"""Tiles give the whole picture's numbers, in less memory."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdjax
from sdjax import config
from sdjax.config.presets import PRESETS
from sdjax.core import tree
from sdjax.nn.shapes import expected_params
from sdjax.nn.tiling import tiles
from sdjax.nn.tiling.tiles import Limits
from sdjax.nn.vae import Autoencoder, decoder_layers, encoder_layers
from sdjax.runtime import programs

FOUR = config.VaeConfig(
    block_out_channels=(8, 16, 16),
    layers_per_block=1,
    latent_channels=4,
    out_channels=3,
    norm_num_groups=4,
    scaling_factor=1.0,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
    force_upcast=False,
)
EIGHT = replace(FOUR, block_out_channels=(8, 8, 8, 16), use_quant_conv=False)
BARE = replace(FOUR, block_out_channels=(8, 16), layers_per_block=2, mid_block_add_attention=False, norm_num_groups=2)
SD = config.VaeConfig.from_dict(PRESETS["sd15"].configs["vae"])

# Latents' h w: every layer in tiles and every result held; none held but between levels; small levels whole; an axis
# of one tile.
CASES = {
    "all held": (FOUR, (5, 7), Limits(whole=0, held=2**30, tile=12)),
    "none held": (BARE, (9, 4), Limits(whole=0, held=0, tile=8)),
    "wide, some whole": (EIGHT, (2, 7), Limits(whole=2000, held=4000, tile=20)),
}


def params_of(vae: config.VaeConfig) -> tree.Params:
    """Weights of which none is 0 or 1, as norms' are at first."""
    shapes = expected_params({"vae": vae})["vae"]
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(leaf.shape) * max(1, np.prod(leaf.shape[:-1])) ** -0.5 for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf, jnp.float32) for leaf in drawn])


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def close(got: jax.Array, want: jax.Array) -> None:
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(("vae", "size", "limits"), CASES.values(), ids=CASES.keys())
def test_decodes_as_the_whole(vae, size, limits):
    params, latents = params_of(vae), normal(2, *size, 4)
    want = jax.jit(partial(Autoencoder(vae).apply, method="decode"))({"params": params}, latents)
    got = jax.jit(partial(tiles.decode, vae, jnp.float32, limits=limits))(params, latents)
    assert got.shape == want.shape == (2, vae.factor * size[0], vae.factor * size[1], 3)
    close(got, want)


@pytest.mark.parametrize(("vae", "size", "limits"), CASES.values(), ids=CASES.keys())
def test_encodes_as_the_whole(vae, size, limits):
    params, pixels = params_of(vae), normal(1, vae.factor * size[0], vae.factor * size[1], 3)
    want = jax.jit(partial(Autoencoder(vae).apply, method="encode"))({"params": params}, pixels)
    got = jax.jit(partial(tiles.encode, vae, jnp.float32, limits=limits))(params, pixels)
    for one, other in zip(got, want, strict=True):
        close(one, other)


def test_no_grey_level_differs_by_more_than_one():
    sd = sdjax.load()
    latents = normal(1, 9, 12, 4)
    whole = sd.decode(latents)
    limits = Limits(whole=0, held=2**30, tile=32)
    cut = jax.jit(partial(tiles.decode, sd.vae, jnp.float32, limits=limits))(sd.params["vae"], latents)
    levels = [np.asarray(127.5 * (jnp.clip(one, -1, 1) + 1)).round().astype(int) for one in (whole, cut)]
    assert np.ptp(levels[0]) > 100 and np.abs(levels[0] - levels[1]).max() <= 1


def test_bfloat16_goes_through():
    params, latents = params_of(BARE), normal(1, 4, 5, 4)
    runs = (partial(tiles.decode, BARE, dtype, limits=Limits(0, 0, 8)) for dtype in (jnp.float32, jnp.bfloat16))
    want, got = (jax.jit(run)(params, latents) for run in runs)
    np.testing.assert_allclose(got, want, atol=0.1 * float(jnp.abs(want).max()))


def test_a_picture_no_multiple_of_the_factor_is_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, not \(8, 10\)"):
        tiles.encode(FOUR, jnp.float32, params_of(FOUR), normal(1, 8, 10, 3))


# ---------------------------------------------------------------------- how the work is cut


@given(st.sampled_from([FOUR, EIGHT, BARE]), st.booleans(), st.integers(0, 4000), st.integers(0, 4000))
def test_sections_hold_every_layer_in_order(vae, decoder, whole, held):
    layers = decoder_layers(vae) if decoder else encoder_layers(vae)
    shape = (4, 6, 4) if decoder else (4 * vae.factor, 6 * vae.factor, 3)
    cut = tiles.sections(layers, shape, Limits(whole, held))
    assert [layer for section in cut for layer in section.layers] == list(layers)
    for section in cut:
        kinds = [layer.kind for layer in section.layers]
        if section.tiled:
            assert "middle" not in kinds and "up" not in kinds[1:] and "down" not in kinds[:-1]


def test_stable_diffusion_is_whole_up_to_1024_pixels():
    for layers, shape in ((decoder_layers(SD), (128, 128, 4)), (encoder_layers(SD), (1024, 1024, 3))):
        assert [section.tiled for section in tiles.sections(layers, shape, Limits())] == [False]


# ---------------------------------------------------------------------- memory


def test_tiles_take_less_memory():
    vae = replace(BARE, layers_per_block=1)
    params, latents = expected_params({"vae": vae})["vae"], jax.ShapeDtypeStruct((1, 128, 128, 4), "float32")
    used = []
    for limits in (Limits(), Limits(whole=2**18, held=0, tile=32)):
        run = jax.jit(partial(tiles.decode, vae, jnp.float32, limits=limits))
        used.append(run.lower(params, latents).compile().memory_analysis().temp_size_in_bytes)
    assert used[1] < used[0] / 3


def test_programs_never_hold_a_level_of_a_large_picture():
    params = expected_params({"vae": SD})["vae"]
    latents = jax.ShapeDtypeStruct((1, 256, 256, 4), jnp.float32)
    assert "x2048x2048x256x" not in programs.decode.lower(SD, jnp.float32, params, latents).as_text()
    pixels = jax.ShapeDtypeStruct((1, 4096, 4096, 3), jnp.float32)
    assert "x4096x4096x128x" not in programs.encode.lower(SD, jnp.float32, params, pixels, None).as_text()
