"""The shapes model's stages: crops hold an edge, folding keeps the pictures, batches are a function of the step."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shapes import batches, encode, models, train_pictures, train_unet, train_vae, workers, world
from sdjax.images.pixels import from_uint8
from sdjax.model.builtin import ASSETS, SHAPES
from sdjax.nn.conditioning import Conditions
from sdjax.nn.shapes import expected_params
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder
from sdjax.text.tokens import Tokenizer
from sdjax.train.losses.autoencoding import BLUR, POSTERIOR
from sdjax.train.losses.denoising import Denoising
from sdjax.train.objective import standard_normal


def test_every_crop_holds_an_edge():
    crops = train_vae.crops(3, 8, 64, seed=0)
    assert crops.shape == (8, 64, 64, 3) and crops.min() >= -1 and crops.max() <= 1
    assert (crops != crops[:, :1, :1]).any((1, 2, 3)).all()
    np.testing.assert_array_equal(crops, train_vae.crops(3, 8, 64, seed=0))


def test_folding_evens_the_latents_and_keeps_the_pictures():
    model, key = Autoencoder(models.VAE), jax.random.key(0)
    params = jax.jit(model.init)(key, jnp.zeros((1, 64, 64, 3)))["params"]
    pixels = jax.random.uniform(key, (2, 64, 64, 3), minval=-1)
    mean, spread = np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.3, 2.0, 1.0, 5.0])
    folded = encode.fold(jax.device_get(params), mean, spread)
    encoded = jax.jit(lambda params: model.apply({"params": params}, pixels, method="encode"))
    before, after = encoded(params), encoded(folded)
    np.testing.assert_allclose(after.mean, (before.mean - mean) / spread, atol=1e-4)
    np.testing.assert_allclose(after.log_variance, before.log_variance - 2 * np.log(spread), atol=1e-4)
    pictured = jax.jit(lambda params: model.apply({"params": params}, pixels))
    np.testing.assert_allclose(pictured(folded), pictured(params), atol=1e-4)


def write_pools(folder, count: int = 20) -> None:
    for things in (1, 2):
        latents = np.full((count, 4, 4, 4), things, np.float16)
        ids = np.full((count, models.MAX_LENGTH), things, np.int32)
        for shard in range(2):
            np.savez(folder / f"things{things}_{shard:03}.npz", latents=latents, ids=ids)


def test_batches_have_more_and_more_of_two_objects(tmp_path):
    write_pools(tmp_path)
    empty = np.zeros(models.MAX_LENGTH, np.int32)
    pictures = batches.Pictures(tmp_path, lambda ids: ids, empty, batch=64, seed=0)
    made_at = {n: [pictures.batch(n + i) for i in range(20)] for n in (0, 5000)}
    first, later, _ = batches.DOUBLE
    for n, want in ((0, first), (5000, later)):
        assert abs(np.mean([(made["latents"] == 2).mean() for made in made_at[n]]) - want) < 0.05
        for made in made_at[n]:
            told = made["context"][:, 0]
            assert ((told == made["latents"][:, 0, 0, 0]) | (told == 0)).all()
    assert 0 < np.mean([(made["context"] == 0).all(1).mean() for made in made_at[0]]) < 0.2
    np.testing.assert_array_equal(made_at[0][3]["latents"], pictures.batch(3)["latents"])


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"--latents={tmp_path}: no pictures of 2 objects there"):
        batches.pool(tmp_path, 2)


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_file_of_pictures_is_named(tmp_path, keep):
    write_pools(tmp_path)
    path = tmp_path / "things1_001.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path} is missing or damaged .*; delete it"):
        batches.pool(tmp_path, 1)


def test_the_falling_rate_needs_a_start():
    program = [sys.executable, "-m", "experiments.shapes.train_unet"]
    for flags, said in (
        (["--decay=5"], "--start and --decay go together"),
        (["--start=/nowhere", "--decay=5"], "/nowhere: no checkpoint there; train first"),
        (["--text=/nowhere"], "/nowhere: no checkpoint there; train first"),
    ):
        done = subprocess.run([*program, *flags], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_objects_weigh_more_than_the_ground():
    latents = np.random.default_rng(0).normal(0, 0.05, (2, 16, 16, 4)).astype(np.float16)
    latents[0, 5:9, 2:6] += 1
    weights = batches.object_weights(latents)
    np.testing.assert_allclose(weights.mean((1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[0, 6, 4] / weights[0, 12, 12], batches.OBJECT, rtol=1e-5)
    np.testing.assert_array_equal(weights[1], np.ones((16, 16, 1), np.float32))


def random_batch(b: int) -> dict[str, np.ndarray]:
    """Latents, noise, texts, and weights of mean 1 in each picture."""
    rng = np.random.default_rng(0)
    sizes = {"latents": (b, 16, 16, 4), "noise": (b, 16, 16, 4), "context": (b, models.MAX_LENGTH, models.TEXT_WIDTH)}
    weights = rng.uniform(0.5, 3, (b, 16, 16, 1))
    batch = {name: rng.normal(size=size) for name, size in sizes.items()}
    batch["weights"] = weights / weights.mean((1, 2, 3), keepdims=True)
    return {name: value.astype(np.float32) for name, value in batch.items()}


def test_the_loss_is_the_weighted_square_of_the_velocity():
    """By its formula, in float64 but for the network: what the shipped U-Net was trained with."""
    objective = Denoising(models.architecture(), weighting=train_unet.WEIGHTING)
    unet, batch, t = train_pictures.shipped_unet(), random_batch(4), np.array([20, 340, 600, 990])
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - beta)[t][:, None, None, None]
    alpha, sigma, noise, x_0 = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), batch["noise"], batch["latents"]
    x = (alpha * x_0 + sigma * noise).astype(np.float32)
    v = jax.jit(UNet(models.UNET).apply)({"params": unet}, x, np.float32(t), Conditions(batch["context"]))
    square = (np.asarray(v, np.float64) - (alpha * noise - sigma * x_0)) ** 2 * batch["weights"]
    want = np.mean(square.mean((1, 2, 3)) * np.minimum(1, 5 * (1 - alpha_bar[:, 0, 0, 0])))
    got, told = jax.jit(objective)({"unet": unet}, batch | {"timesteps": t.astype(np.int32)}, jax.random.key(0))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(told["square"], ((v - (alpha * noise - sigma * x_0)) ** 2).mean(), rtol=1e-6)


def test_the_loss_of_a_network_that_says_zero():
    """With x_0 = 0, v = alpha * noise; a zero network's loss is then the weighted mean of alpha^2."""
    architecture = models.architecture()
    silent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), expected_params({"unet": models.UNET})["unet"])
    context = np.zeros((64, models.MAX_LENGTH, models.TEXT_WIDTH), np.float32)
    batch = {"latents": np.zeros((64, 16, 16, 4), np.float32), "context": context}
    objective = Denoising(architecture, weighting=train_unet.WEIGHTING)
    got, _ = jax.jit(objective)({"unet": silent}, batch, jax.random.key(0))
    alpha_bar = np.array(architecture.alphas_cumprod)
    snr = alpha_bar / (1 - alpha_bar)
    want = np.mean(alpha_bar * np.minimum(snr + 1, train_unet.GAMMA) / (snr + 1))
    assert abs(float(got) / float(want) - 1) < 0.02


def test_the_decoder_sees_noise_of_the_batchs_spread():
    """The autoencoder's loss by its formula, of two pictures of which one is all but flat."""
    model, rng = Autoencoder(models.VAE), np.random.default_rng(0)
    vae = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), models.shipped("vae", models.VAE))
    pixels = (rng.uniform(-1, 1, (2, 64, 64, 3)) * np.array([1, 0.01])[:, None, None, None]).astype(np.float32)
    objective = train_vae.Reconstruction(models.VAE, kl=1e-5, noise=0.1)
    batch = objective.draw({"pixels": pixels}, jax.random.key(0))
    got, _ = jax.jit(objective.loss)({"vae": vae}, batch)

    posterior = jax.jit(lambda x: model.apply({"params": vae}, x, method="encode"))(pixels)
    mean, log_variance = (np.asarray(one, np.float64) for one in (posterior.mean, posterior.log_variance))
    e, blur = (np.asarray(standard_normal(batch["keys"], name, mean.shape[1:])) for name in (POSTERIOR, BLUR))
    z = mean + np.exp(log_variance / 2) * e + 0.1 * mean.std((0, 1, 2)) * blur
    decoded = jax.jit(lambda z: model.apply({"params": vae}, z, method="decode"))(z.astype(np.float32))
    error = np.asarray(decoded, np.float64) - pixels
    edges = abs(np.diff(error, axis=1)).mean() + abs(np.diff(error, axis=2)).mean()
    kl = (mean**2 + np.exp(log_variance) - 1 - log_variance).mean() / 2
    np.testing.assert_allclose(got, abs(error).mean() + (error**2).mean() + edges / 2 + 1e-5 * kl, rtol=1e-5)


def test_shards_are_written_once(tmp_path):
    tokenizer = Tokenizer.load(ASSETS / SHAPES / "tokenizer")
    path = tmp_path / "things2_001.npz"
    with workers.pool(encode.SHARD) as pool:
        ((_, pictures),) = encode.drawn(pool, [(path, 2, encode.SHARD)])
        encode.write_shard(lambda x: x[:, ::8, ::8, :], tokenizer, path, pictures)
    made = np.load(path)
    expected, captions = world.dataset(encode.SEED, encode.SHARD, encode.SHARD, things=2)
    np.testing.assert_array_equal(made["ids"], tokenizer.tokens(captions))
    np.testing.assert_array_equal(made["latents"], np.asarray(from_uint8(expected[:, ::8, ::8]), np.float16))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
