"""The VAE's objectives and method: pieces, keys, what learns, what is written. The numbers are in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.config import VaeConfig
from sdjax.core.tree import flatten
from sdjax.nn.discriminator import PatchDiscriminator, fresh_discriminator
from sdjax.nn.vae import Autoencoder
from sdjax.train.evaluation.reconstruction import psnr, reconstructed, scaling_factor
from sdjax.train.losses.adversarial import AdversarialAutoencoding
from sdjax.train.losses.autoencoding import Autoencoding
from sdjax.train.losses.perceptual import LpipsTerm
from sdjax.train.methods.vae import VaeTraining, vae_json

CONFIG = VaeConfig.from_dict(dict(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def vae():
    return jax.jit(Autoencoder(CONFIG).init)(KEY, jnp.zeros((1, 16, 16, 3)))["params"]


def pixels(b: int = 4, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (b, side, side, 3)).astype(np.float32)


def test_pieces_are_the_whole(vae):
    """`draw` sees the batch once; after that a picture's loss is its own, noise and all."""
    objective = Autoencoding(CONFIG, noise=0.2, kl=1e-3)
    drawn = objective.draw({"pixels": pixels()}, KEY)
    params, loss = {"vae": vae}, jax.jit(objective.loss)
    whole = float(loss(params, drawn)[0])
    halves = [float(loss(params, jax.tree.map(lambda x, i=i: x[i : i + 2], drawn))[0]) for i in (0, 2)]
    assert abs(np.mean(halves) - whole) < 1e-6
    filled = {**drawn, "valid": jnp.array([1.0, 1.0, 0.0, 0.0])}
    assert abs(float(loss(params, filled)[0]) - halves[0]) < 1e-6


def test_published_and_simple_kl_are_one_number(vae):
    """TRAINING.md, golden fact 11: 1e-6 on sums is 2.08333e-8 on means, for f = 8 and c = 4."""
    assert abs(1e-6 * 4 / (3 * 8**2) - 2.08333e-8) < 1e-13 and abs(Autoencoding(CONFIG).kl - 2.08333e-8) < 1e-12
    drawn = Autoencoding(CONFIG).draw({"pixels": pixels()}, KEY)
    means = jax.jit(Autoencoding(CONFIG, kl=1.0).loss)({"vae": vae}, drawn)[1]["kl"]
    discriminator = PatchDiscriminator(4, 1)
    params = {"vae": vae, "discriminator": fresh_discriminator(discriminator, KEY)}
    published = AdversarialAutoencoding(CONFIG, discriminator)
    sums = jax.jit(published.loss)(params, published.draw({"pixels": pixels()}, KEY))[1]["kl"]
    assert abs(float(sums) / float(means) / (8 * 8 * 4) - 1) < 1e-5  # per latent number of a 16 x 16 picture, f = 2


def test_the_discriminator_is_let_in_by_the_batch(vae):
    """One program before and after; before, nothing of it reaches the VAE, and it does not move."""
    discriminator = PatchDiscriminator(4, 2, "group")
    objective = AdversarialAutoencoding(CONFIG, discriminator)
    method = VaeTraining(CONFIG, discriminator=discriminator)
    learning = method.start({"vae": vae}, KEY)
    compiled = []

    @jax.jit
    def gradient(learning, batch):
        compiled.append(1)
        return jax.grad(lambda own: objective(method.join(own, {"vae": vae}), batch, KEY)[0])(learning)

    off, on = (gradient(learning, {"pixels": pixels(), "adversarial": np.full(4, f, np.float32)}) for f in (0, 1))
    assert len(compiled) == 1
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(off["discriminator"]))
    # All but the last bias, of which the two halves of the hinge cancel while no logit is beyond 1.
    assert all(np.any(leaf) for path, leaf in flatten(on["discriminator"]).items() if path[-1] == "kernel")
    decoders = [flatten(one["vae"]["decoder"]) for one in (off, on)]
    assert all(np.any(decoders[0][path] != decoders[1][path]) for path in decoders[0] if path[-1] == "kernel")


def test_logits_by_the_group_norm_are_each_pictures_own():
    x, alone = pixels(4, 24), {}
    for norm in ("group", "batch"):
        network = PatchDiscriminator(8, 2, norm)
        params = {"params": fresh_discriminator(network, KEY)}
        apply = jax.jit(network.apply)
        alone[norm] = abs(apply(params, x)[:1] - apply(params, x[:1])).max()
    assert alone["group"] < 1e-6 < 1e-3 < alone["batch"]
    with pytest.raises(ValueError, match="nearest: 'batch'"):
        jax.eval_shape(PatchDiscriminator(8, 2, "bach").init, KEY, x)


def test_a_fresh_discriminator_is_drawn_as_published():
    params = flatten(fresh_discriminator(PatchDiscriminator(32, 2), KEY))
    kernels = np.concatenate([np.ravel(leaf) for path, leaf in params.items() if path[-1] == "kernel"])
    assert abs(kernels.std() - 0.02) < 2e-4 and abs(kernels.mean()) < 2e-4
    scales = np.concatenate([np.ravel(leaf) for path, leaf in params.items() if path[-1] == "scale"])
    assert abs(scales.mean() - 1) < 0.01 and abs(scales.std() - 0.02) < 0.005


def test_a_decoder_alone_leaves_the_latents(vae, tmp_path):
    method = VaeTraining(CONFIG, "decoder")
    learning = method.start({"vae": vae}, KEY)
    assert set(learning["vae"]) == {"decoder", "post_quant_conv"}
    changed = method.join(jax.tree.map(lambda leaf: leaf + 0.01, learning), {"vae": vae})["vae"]
    for part in ("encoder", "quant_conv"):
        for path, leaf in flatten(changed[part]).items():
            np.testing.assert_array_equal(leaf, flatten(vae[part])[path])


def test_what_is_written_is_opened(vae, tmp_path):
    """By `sdjax.load(vae=)`, in the place of the shapes model's; and its config says what was trained."""
    wide = dataclasses.replace(CONFIG, block_out_channels=(8, 8, 8, 8), scaling_factor=0.5)
    params = jax.jit(Autoencoder(wide).init)(KEY, jnp.zeros((1, 16, 16, 3)))["params"]
    method = VaeTraining(wide)
    written = method.write(method.start({"vae": params}, KEY), {"vae": params}, tmp_path, {"scaling_factor": "1.25"})
    assert written == tmp_path / "vae" and VaeConfig.from_dict(vae_json(wide)) == wide
    sd = sdjax.load(vae=tmp_path)
    assert sd.vae == dataclasses.replace(wide, scaling_factor=1.25)
    for path, leaf in flatten(sd.params["vae"]).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda vae: VaeTraining(CONFIG, "decoders"), "part 'decoders' of a VAE is unknown; nearest: 'decoder'"),
        (
            lambda vae: VaeTraining(CONFIG).start({"unet": vae}, KEY),
            "a VAE is to learn, and the parameters are of unet",
        ),
        (lambda vae: Autoencoding(CONFIG)({"vae": vae}, {"ids": np.zeros(2)}, KEY), "learns from pixels"),
        (lambda vae: Autoencoding(CONFIG)({"vae": vae}, {"pixels": pixels(1, 15)}, KEY), "no multiples of 2"),
        (
            lambda vae: Autoencoding(CONFIG, perceptual=LpipsTerm())({"vae": vae}, {"pixels": pixels(1)}, KEY),
            'needs params\\["perceptual"\\]',
        ),
    ],
)
def test_mistakes(vae, call, said):
    with pytest.raises(ValueError, match=said):
        call(vae)


def test_psnr_and_the_scale(vae):
    one = np.zeros((2, 4, 4, 3), np.uint8)
    other = one.copy()
    other[1] = 51  # a fifth
    np.testing.assert_allclose(psnr(one, other), [np.inf, 20 * np.log10(5)])
    with pytest.raises(ValueError, match="two uint8 arrays"):
        psnr(one, other.astype(np.float32))
    assert reconstructed(CONFIG, vae, pixels()).dtype == np.uint8
    batches = [{"pixels": pixels(3)}, {"pixels": -pixels(3)}]
    keys = jax.random.split(KEY, 2)
    encode = jax.jit(lambda x: Autoencoder(CONFIG).apply({"params": vae}, x, method="encode"))
    posteriors = [encode(one["pixels"]) for one in batches]
    drawn = [
        p.mean + jnp.exp(0.5 * p.log_variance) * jax.random.normal(key, (400, *p.mean.shape))
        for p, key in zip(posteriors, keys, strict=True)
    ]
    assert abs(scaling_factor(CONFIG, vae, batches) * float(jnp.std(jnp.stack(drawn))) - 1) < 0.01
    with pytest.raises(ValueError, match="no scale"):
        scaling_factor(CONFIG, vae, [])
