"""The depth estimator against transformers' DPTForDepthEstimation: small random hybrids."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DPTConfig, DPTForDepthEstimation

from sdjax.config import DepthConfig
from sdjax.core.tree import flatten, unflatten
from sdjax.nn.dpt.depth import DepthNetwork
from sdjax.weights.names import from_file, tensor_name
from tests.golden import make_depth

BIT = dict(
    model_type="bit",
    global_padding="same",
    layer_type="bottleneck",
    depths=[1, 2, 1],
    hidden_sizes=[16, 24, 40],
    embedding_size=8,
    num_groups=4,
    out_features=["stage1", "stage2", "stage3"],
    embedding_dynamic_padding=True,
)
SMALL = dict(
    is_hybrid=True,
    hidden_size=32,
    num_hidden_layers=5,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=64,
    backbone_out_indices=[0, 1, 2, 4],
    neck_hidden_sizes=[16, 24, 32, 20],
    fusion_hidden_size=16,
    backbone_featmap_shape=[1, 40, 4, 4],
    backbone_config=BIT,
)
CONFIGS = {
    "small": SMALL,
    "no bias, larger": SMALL | dict(qkv_bias=False, image_size=96, backbone_featmap_shape=[1, 40, 6, 6]),
    "deeper backbone": SMALL
    | dict(
        backbone_config=BIT | dict(depths=[2, 1, 3], hidden_sizes=[8, 32, 64, 99], num_groups=8),
        neck_hidden_sizes=[8, 32, 24, 24],
        backbone_featmap_shape=[1, 64, 4, 4],
    ),
}


def build(config):
    """The network with norms moved off 1 and 0, and outputs that are not all cut off by its last ReLU."""
    torch.manual_seed(0)
    network = DPTForDepthEstimation(DPTConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or "token" in name or "position" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.startswith(("neck", "head")):
                parameter.mul_(4.0)
        network.head.head[4].bias.fill_(3.0)
    return network


def params_of(network, config):
    """The state dict as our tree; nothing may be left over or missing."""
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    shape = (1, config.image_size, config.image_size, 3)
    expected = jax.eval_shape(DepthNetwork(config).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    found = {}
    for path, leaf in flatten(expected["params"]).items():
        found[path] = jnp.asarray(from_file(path, state.pop(tensor_name(path))))
        assert found[path].shape == leaf.shape
    assert not state
    return unflatten(found)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_small_networks(name):
    network = build(CONFIGS[name])
    config = DepthConfig.from_dict(network.config.to_dict())
    pixels = np.random.default_rng(1).standard_normal((2, config.image_size, config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).predicted_depth.numpy()
    ours = np.asarray(jax.jit(DepthNetwork(config).apply)({"params": params_of(network, config)}, pixels))
    assert ours.shape == theirs.shape and theirs.std() > 0.005 and (theirs > 0).mean() > 0.9
    assert abs(ours - theirs).max() / theirs.std() <= 1e-4
    assert abs(ours - theirs).max() / abs(theirs).max() <= 1e-5


@pytest.mark.parametrize("height, width", [(96, 96), (32, 160), (128, 64)])
def test_pictures_of_another_size(height, width):
    """Places are interpolated. Theirs can do so, but its model never asks its parts to and takes grids as square."""
    network = build(SMALL)
    config = DepthConfig.from_dict(network.config.to_dict())
    network.dpt.embeddings.forward = partial(network.dpt.embeddings.forward, interpolate_pos_encoding=True)
    neck, grid = network.neck.forward, (height // config.patch_size, width // config.patch_size)
    network.neck.forward = lambda states, *square: neck(states, *grid)
    pixels = np.random.default_rng(2).standard_normal((1, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).predicted_depth.numpy()
    ours = np.asarray(jax.jit(DepthNetwork(config).apply)({"params": params_of(network, config)}, pixels))
    assert ours.shape == theirs.shape == (1, height, width) and (theirs > 0).mean() > 0.9
    assert abs(ours - theirs).max() / theirs.std() <= 1e-4


def full():
    """The published sizes, of random weights under which every layer keeps about its input's variance.

    Float32 alone moves such a depth by 2e-5, so torch's float64 says how far each side is from what is right.
    """
    torch.manual_seed(0)
    published = {key: value for key, value in make_depth.CONFIG.items() if key != "architectures"}
    network = DPTForDepthEstimation(DPTConfig(**published)).eval()
    for name, parameter in network.named_parameters():
        drawn = torch.randn_like(parameter)
        if parameter.ndim == 1:
            parameter.data += 0.1 * drawn
        else:
            small = 0.3 if "token" in name or "position" in name else parameter[0].numel() ** -0.5
            parameter.data = small * drawn
    network.head.head[4].bias.data.fill_(10.0)
    config = DepthConfig.from_dict(make_depth.CONFIG)
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 384, 384, 3)).astype(np.float32)
    given = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    params = jax.tree.map(np.array, params_of(network, config))
    with torch.no_grad():
        theirs = network(given).predicted_depth.numpy()
        right = network.double()(given.double()).predicted_depth.numpy()
    ours = np.asarray(jax.jit(DepthNetwork(config).apply)({"params": params}, pixels))
    for who, one, other in (("ours to theirs", ours, theirs), ("ours", ours, right), ("theirs", theirs, right)):
        away = abs(one - other).max()
        print(f"{who}: {away / abs(right).max():.2g} of the largest depth, {away / right.std():.2g} of the spread")
    assert abs(ours - theirs).max() / abs(theirs).max() <= 1e-4


if __name__ == "__main__":  # the published size: python -m tests.parity.test_depth
    full()
