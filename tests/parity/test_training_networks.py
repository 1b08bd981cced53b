"""The discriminator, LPIPS and Inception against torch on random weights: outputs, and gradients where used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdjax.core.errors import CheckpointError
from sdjax.nn.discriminator import PatchDiscriminator
from sdjax.nn.inception import FidInception
from sdjax.nn.parameter import shapes
from sdjax.nn.perceptual import Lpips
from sdjax.train.losses.perceptual import LpipsTerm
from tests.parity import training_networks as theirs

WIDTHS = (16, 16, 24, 24, 32)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def away(ours, wanted) -> float:
    wanted = np.asarray(wanted)
    return float(abs(np.asarray(ours) - wanted).max() / abs(wanted).max())


@pytest.mark.parametrize("width, layers", [(8, 3), (6, 2)])
def test_discriminator(width, layers):
    torch.manual_seed(0)
    network, x = theirs.scattered(theirs.discriminator(width, layers)).train(), pictures(3, 64, 48, 3)
    ours = PatchDiscriminator(width, layers)
    params = theirs.params_like(shapes(ours, x), network)
    given = theirs.nchw(x).requires_grad_()
    wanted = network(given)
    (wanted[:, 0] ** 2).sum().backward()
    got, gradient = jax.value_and_grad(lambda x: jnp.sum(jnp.square(ours.apply({"params": params}, x))))(x)
    logits = ours.apply({"params": params}, x)
    assert logits.shape == tuple(wanted[:, 0].shape)
    assert away(logits, wanted[:, 0].detach()) <= 1e-5
    assert away(gradient, given.grad.permute(0, 2, 3, 1)) <= 1e-4
    assert np.isfinite(got)


def test_lpips():
    torch.manual_seed(0)
    network, x, y = theirs.scattered(theirs.Lpips(WIDTHS)), pictures(2, 48, 32, 3), pictures(2, 48, 32, 3, seed=1)
    ours = Lpips(WIDTHS)
    params = theirs.params_like(shapes(ours, x, y), network)
    given = theirs.nchw(y).requires_grad_()
    wanted = network(theirs.nchw(x), given)[:, 0, 0, 0]
    wanted.sum().backward()
    got = ours.apply({"params": params}, x, y)
    gradient = jax.grad(lambda y: jnp.sum(ours.apply({"params": params}, x, y)))(y)
    assert away(got, wanted.detach()) <= 1e-5
    assert away(gradient, given.grad.permute(0, 2, 3, 1)) <= 1e-4


@pytest.mark.parametrize("dialect", ["torchvision and lins", "lpips", "both"])
def test_lpips_from_files(tmp_path, dialect):
    """Trunk and weights apart or in one file, with what else such files hold."""
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in theirs.Lpips(WIDTHS).state_dict().items()}
    trunk = {k: v for k, v in state.items() if k.startswith("features")} | {"classifier.0.bias": torch.zeros(3)}
    lins = {k: v for k, v in state.items() if k.startswith("lin")}
    stages = {"features." + str(i): f"net.slice{s}.{i}" for s, own in
              enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), 1) for i in own}  # fmt: skip
    renamed = {f"{stages[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in state.items() if k[0] == "f"}
    again = {k.replace("lin", "lins.", 1): v.clone() for k, v in lins.items()}
    files = {
        "torchvision and lins": [trunk, lins],
        "lpips": [renamed | lins | again | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}],
        "both": [trunk | lins],
    }[dialect]
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(files))]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    params = LpipsTerm(WIDTHS).read(paths)
    np.testing.assert_array_equal(params["features"]["28"]["kernel"], state["features.28.weight"].permute(2, 3, 1, 0))
    weights = params["lin2.model.1"]["kernel"][0, 0, :, 0]
    np.testing.assert_array_equal(weights, state["lin2.model.1.weight"][0, :, 0, 0])
    if len(paths) == 2:
        with pytest.raises(CheckpointError, match="does not hold LPIPS with its VGG-16"):
            LpipsTerm(WIDTHS).read(paths[:1])


def test_inception():
    torch.manual_seed(0)
    network, x = theirs.scattered(theirs.Inception()).eval(), pictures(2, 299, 299, 3)
    ours = FidInception()
    params = theirs.params_like(shapes(ours, x), network)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 21_785_568 + 2 * 17_216
    with torch.no_grad():
        wanted = network(theirs.nchw(x))
    got = jax.jit(ours.apply)({"params": params}, x)
    assert got.shape == (2, 2048) and away(got, wanted) <= 1e-4
