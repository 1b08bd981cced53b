"""The VAE's losses against torch: latent diffusion's published form, re-derived here, and diffusers' AutoencoderKL.

Two half-steps with two optimisers are theirs; here one loss has both networks' gradients, compared one by one.
"""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sdjax.config import VaeConfig
from sdjax.core.tree import flatten
from sdjax.nn.discriminator import PatchDiscriminator
from sdjax.nn.parameter import shapes
from sdjax.nn.perceptual import Lpips
from sdjax.nn.vae import Autoencoder
from sdjax.train.losses.adversarial import AdversarialAutoencoding
from sdjax.train.losses.autoencoding import Autoencoding
from sdjax.train.losses.perceptual import LpipsTerm
from tests.parity import training_networks as theirs
from tests.parity.test_networks import load, randomise, to_params

WIDTHS = (16, 16, 24, 24, 32)
SIDE, WIDTH, LAYERS = 32, 8, 2
VAE = dict(
    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=4, latent_channels=3, layers_per_block=1, sample_size=SIDE,
)  # fmt: skip


class Theirs:
    """All networks in torch, and their parameters as ours have them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae = randomise(diffusers.AutoencoderKL(**VAE), 1)
        self.lpips = theirs.scattered(theirs.Lpips(WIDTHS)).requires_grad_(False)
        self.discriminator = theirs.scattered(theirs.discriminator(WIDTH, LAYERS)).train()
        self.config = VaeConfig.from_dict(dict(self.vae.config))
        x = jnp.zeros((1, SIDE, SIDE, 3))
        self.params = {
            "vae": load(Autoencoder(self.config), to_params(self.vae), x)["params"],
            "perceptual": theirs.params_like(shapes(Lpips(WIDTHS), x, x), self.lpips),
            "discriminator": theirs.params_like(shapes(PatchDiscriminator(WIDTH, LAYERS), x), self.discriminator),
        }

    def reconstructed(self, batch):
        posterior = self.vae.encode(theirs.nchw(batch["pixels"])).latent_dist
        latents = posterior.mean + posterior.std * theirs.nchw(batch["noise"])
        return posterior, self.vae.decode(latents).sample


@pytest.fixture(scope="module")
def networks():
    return Theirs()


def batch_of(b: int = 3) -> dict:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (b, 8, 8, 3)).repeat(4, 1).repeat(4, 2).astype(np.float32)
    noise = rng.standard_normal((b, SIDE // 2, SIDE // 2, 3)).astype(np.float32)
    return {"pixels": x, "noise": noise}


def published(networks, batch, f: float, s, square: bool, p: float):
    """LPIPSWithDiscriminator.forward of CompVis/latent-diffusion, for both optimisers: (VAE's loss, D's, parts)."""
    x = theirs.nchw(batch["pixels"])
    b = len(x)
    posterior, y = networks.reconstructed(batch)
    rec = (x - y) ** 2 if square else (x - y).abs()
    rec = rec + p * networks.lpips(x, y)
    nll = (rec / s.exp() + s).sum() / b
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).sum() / b
    g = -networks.discriminator(y).mean()
    last = networks.vae.decoder.conv_out.weight
    of_nll = torch.autograd.grad(nll, last, retain_graph=True)[0]
    of_g = torch.autograd.grad(g, last, retain_graph=True)[0]
    d = torch.clamp(of_nll.norm() / (of_g.norm() + 1e-4), 0.0, 1e4).detach() * 0.5
    of_vae = nll + 1e-6 * kl + d * f * g
    real, fake = networks.discriminator(x), networks.discriminator(y.detach())
    of_discriminator = f * 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return of_vae, of_discriminator, {"likelihood": nll, "kl": kl, "fooled": g, "weight": d}


def check_gradients(ours: dict, module: torch.nn.Module, gradients) -> None:
    """Every gradient of a network, each to 1e-4 of its own largest number or of 1e-5 of the network's largest."""
    wanted = {name: g.numpy() for (name, _), g in zip(module.named_parameters(), gradients, strict=True)}
    largest = max(abs(g).max() for g in wanted.values())
    for path, gradient in flatten(ours).items():
        name = ".".join((*path[:-1], "weight" if path[-1] in ("kernel", "scale") else path[-1]))
        theirs_one, mine = wanted.pop(name), np.asarray(gradient)
        if path[-1] == "kernel":
            mine = mine.transpose(3, 2, 0, 1) if mine.ndim == 4 else mine.T
        mine = mine.reshape(theirs_one.shape)
        # the floor: a bias of keys has no gradient, since softmax does not see it; what there is of it is rounding
        assert abs(mine - theirs_one).max() <= 1e-4 * max(abs(theirs_one).max(), 1e-3 * largest), name
    assert not wanted


@pytest.mark.parametrize("f, s, square, p", [(1.0, 0.0, False, 1.0), (1.0, 0.3, True, 0.1), (0.0, 0.0, False, 1.0)])
def test_the_published_loss(networks, f, s, square, p):
    batch, variance = batch_of(), torch.tensor(s, requires_grad=True)
    of_vae, of_discriminator, parts = published(networks, batch, f, variance, square, p)
    vae, discriminator = list(networks.vae.parameters()), list(networks.discriminator.parameters())
    *wanted_vae, wanted_s = torch.autograd.grad(of_vae, [*vae, variance], retain_graph=True)
    wanted_discriminator = torch.autograd.grad(of_discriminator, discriminator)

    objective = AdversarialAutoencoding(
        networks.config, PatchDiscriminator(WIDTH, LAYERS), LpipsTerm(WIDTHS), p, square, weight=0.5
    )
    params = networks.params | {"log_variance": {"value": jnp.float32(s)}}
    given = batch | {"adversarial": np.full(3, f, np.float32)}
    both = jax.jit(jax.value_and_grad(objective, has_aux=True))  # f and s are data: one program
    (value, metrics), gradients = both(params, given, jax.random.key(0))
    total = float((of_vae + of_discriminator).detach())
    assert abs(float(value) / total - 1) <= 1e-5
    for name, part in parts.items():
        assert abs(float(metrics[name]) / float(part.detach()) - 1) <= 1e-4, name
    check_gradients(gradients["vae"], networks.vae, wanted_vae)
    check_gradients(gradients["discriminator"], networks.discriminator, wanted_discriminator)
    assert abs(float(gradients["log_variance"]["value"]) / float(wanted_s) - 1) <= 1e-4
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["perceptual"]))
    if f == 0:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["discriminator"]))


def test_the_simple_loss(networks):
    """Equation 2 of `autoencoding`, every term, and its gradient."""
    batch, p, k = batch_of(), 0.7, 1e-3
    objective = Autoencoding(
        networks.config, absolute=0.9, square=1.1, edges=0.5, kl=k, perceptual=LpipsTerm(WIDTHS), perceptual_weight=p
    )
    x = theirs.nchw(batch["pixels"])
    posterior, y = networks.reconstructed(batch)
    error = y - x
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    wanted = 0.9 * error.abs().mean() + 1.1 * (error**2).mean() + 0.5 * edges
    wanted = wanted + p * networks.lpips(x, y).mean() + k * kl
    gradients = torch.autograd.grad(wanted, list(networks.vae.parameters()))
    key = jax.random.key(0)
    value, ours = jax.jit(jax.value_and_grad(lambda params: objective(params, batch, key)[0]))(networks.params)
    assert abs(float(value) / float(wanted.detach()) - 1) <= 1e-5
    check_gradients(ours["vae"], networks.vae, gradients)


@pytest.mark.parametrize("term", ["absolute", "square", "edges", "kl", "perceptual"])
def test_each_term_alone_has_a_gradient(networks, term):
    """Trap 20: a perceptual term computed without a gradient looks like one with."""
    nothing = Autoencoding(networks.config, absolute=0, square=0, edges=0, kl=0)
    chosen = {"perceptual": LpipsTerm(WIDTHS)} if term == "perceptual" else {term: 1.0}
    objective, batch = dataclasses.replace(nothing, **chosen), batch_of(2)
    gradient = jax.jit(jax.grad(lambda params: objective(params, batch, jax.random.key(0))[0]))(networks.params)
    assert np.any(np.asarray(gradient["vae"]["encoder"]["conv_in"]["kernel"]))
    assert np.any(np.asarray(gradient["vae"]["decoder"]["conv_out"]["kernel"])) == (term != "kl")
