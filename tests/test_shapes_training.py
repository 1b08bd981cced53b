"""The shapes model's stages: crops hold an edge, folding keeps the pictures, batches are a function of the step."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shapes import encode, models, train_unet, train_vae
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder


def test_every_crop_holds_an_edge():
    crops = train_vae.crops(3, 8, 64, seed=0)
    assert crops.shape == (8, 64, 64, 3) and crops.min() >= -1 and crops.max() <= 1
    assert (crops != crops[:, :1, :1]).any((1, 2, 3)).all()
    np.testing.assert_array_equal(crops, train_vae.crops(3, 8, 64, seed=0))


def test_folding_evens_the_latents_and_keeps_the_pictures():
    model, key = Autoencoder(models.VAE), jax.random.key(0)
    params = model.init(key, jnp.zeros((1, 64, 64, 3)))["params"]
    pixels = jax.random.uniform(key, (2, 64, 64, 3), minval=-1)
    mean, spread = np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.3, 2.0, 1.0, 5.0])
    folded = encode.fold(jax.device_get(params), mean, spread)
    before, after = (model.apply({"params": p}, pixels, method="encode") for p in (params, folded))
    np.testing.assert_allclose(after.mean, (before.mean - mean) / spread, atol=1e-4)
    np.testing.assert_allclose(after.log_variance, before.log_variance - 2 * np.log(spread), atol=1e-4)
    pictures = [model.apply({"params": p}, pixels) for p in (params, folded)]
    np.testing.assert_allclose(pictures[1], pictures[0], atol=1e-4)


def test_batches_grow_from_one_object_to_two(tmp_path):
    for things in (1, 2):
        latents = np.full((20, 2, 2, 4), things, np.float16)
        np.savez(tmp_path / f"things{things}.npz", latents=latents, ids=np.full((20, 24), things, np.int32))
    empty = np.zeros(24, np.int32)
    pictures = train_unet.Pictures(tmp_path, empty, batch=64, steps=100, seed=0)
    early, late = pictures.batch(10), pictures.batch(90)
    assert (early["latents"] == 1).all()
    assert 0.25 < (late["latents"] == 2).mean() < 0.75
    for made in (early, late):
        told = made["ids"][:, 0]
        assert ((told == made["latents"][:, 0, 0, 0]) | (told == 0)).all()
    assert 0 < sum((pictures.batch(n)["ids"] == 0).all(1).mean() for n in range(20)) / 20 < 0.2
    np.testing.assert_array_equal(late["latents"], pictures.batch(90)["latents"])


def test_the_loss_of_a_network_that_says_zero():
    """With x_0 = 0, v = alpha * noise; a zero network's loss is then the weighted mean of alpha^2."""
    vocabulary = 40
    params = train_unet.init_params(vocabulary, 0)
    params["unet"]["conv_out"] = jax.tree.map(jnp.zeros_like, params["unet"]["conv_out"])
    alpha_bar = jnp.linspace(0.999, 0.01, 1000)
    batch = {"latents": np.zeros((64, 16, 16, 4), np.float32), "ids": np.zeros((64, 24), np.int32)}
    args = (ClipTextEncoder(models.text_config(vocabulary)), UNet(models.UNET), alpha_bar, params, batch)
    got = train_unet.loss(*args, jax.random.key(0))
    snr = alpha_bar / (1 - alpha_bar)
    want = jnp.mean(alpha_bar * jnp.minimum(snr, train_unet.GAMMA) / (snr + 1))
    assert abs(float(got) / float(want) - 1) < 0.02
