"""Hypernetworks against torch: A1111's module re-derived from its formula, with torch's own layers and activations.

Sequential of, for each step i: Linear(d s_i, d s_i+1); the activation, but not behind the last where
activate_output is off; LayerNorm where is_layer_norm; Dropout where its probability is above 0
forward(x) = x + m net(x)
"""

import json

import numpy as np
import pytest
import torch

from sdjax.adapters.hypernetwork import Hypernetwork, attach
from sdjax.nn.hypernetwork import ACTIVATIONS
from sdjax.runtime import programs
from tests.parity import families
from tests.parity.families import relative

NAMES = {
    "linear": None, "relu": "ReLU", "leakyrelu": "LeakyReLU", "elu": "ELU", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "swish": "Hardswish", "hardswish": "Hardswish", "silu": "SiLU", "mish": "Mish", "gelu": "GELU",
    "softsign": "Softsign", "softplus": "Softplus", "softshrink": "Softshrink", "hardshrink": "Hardshrink",
    "tanhshrink": "Tanhshrink", "hardtanh": "Hardtanh", "hardsigmoid": "Hardsigmoid", "logsigmoid": "LogSigmoid",
    "relu6": "ReLU6", "rrelu": "RReLU", "selu": "SELU", "celu": "CELU",
}  # fmt: skip


class Module(torch.nn.Module):
    """One of the two networks of a width."""

    def __init__(self, width, structure, activation, norm, output, dropout):
        super().__init__()
        members, last = [], len(structure) - 2
        for i, (a, b) in enumerate(zip(structure, structure[1:], strict=False)):
            members.append(torch.nn.Linear(int(width * a), int(width * b)))
            torch.nn.init.normal_(members[-1].weight, std=(width * a) ** -0.5)
            torch.nn.init.normal_(members[-1].bias, std=0.3)
            if NAMES[activation] and (i < last or output):
                members.append(getattr(torch.nn, NAMES[activation])())
            if norm:
                members.append(torch.nn.LayerNorm(int(width * b)))
                torch.nn.init.normal_(members[-1].weight, 1.0, 0.2)
                torch.nn.init.normal_(members[-1].bias, std=0.2)
            if dropout and i < last:
                members.append(torch.nn.Dropout(dropout))
        self.linear, self.m = torch.nn.Sequential(*members), 1.0
        self.eval()

    def forward(self, x):
        return x + self.m * self.linear(x)


def made(widths, structure=(1, 2, 1), activation="relu", norm=False, output=True, dropout=0.0, seed=0):
    """torch's modules by width and use, and the file that they are."""
    torch.manual_seed(seed)
    modules = {(w, use): Module(w, structure, activation, norm, output, dropout) for w in widths for use in "kv"}
    tensors = {
        f"{width}.{use}.{name}": array.detach().numpy().copy()
        for (width, use), module in modules.items()
        for name, array in module.state_dict().items()
    }
    metadata = {
        "layer_structure": json.dumps(structure),
        "activation_func": activation,
        "is_layer_norm": str(norm),
        "activate_output": str(output),
        "use_dropout": str(dropout > 0),
    }
    return modules, Hypernetwork.read("h", tensors, metadata, "h.safetensors")


@pytest.mark.parametrize("activation", NAMES)
@torch.no_grad()
def test_every_activation(activation):
    assert set(NAMES) == set(ACTIVATIONS)
    modules, ours = made([16], activation=activation)
    x = 3 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    for layer, use in zip(ours.layers[16], "kv", strict=True):
        assert relative(layer(x.numpy()), modules[16, use](x).numpy()) < 1e-5


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 2, 4, 0.5, 1)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@torch.no_grad()
def test_every_structure(structure, norm, output, dropout):
    modules, ours = made([16], structure, "swish", norm, output, dropout)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    for layer, use in zip(ours.layers[16], "kv", strict=True):
        assert relative(layer(x.numpy()), modules[16, use](x).numpy()) < 1e-5


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_a_unet(kind):
    """diffusers' U-Net, whose attentions' key and value layers get what the modules make of their input."""
    pipeline, sd = families.opened(kind)
    widths = sorted({module.in_features for name, module in pipeline.unet.named_modules() if name.endswith("to_k")})
    files = [made(widths, norm=i == 1, seed=i) for i in range(2)]
    for modules, m in zip((files[0][0], files[1][0]), (0.8, -0.5), strict=True):
        for module in modules.values():
            module.m = m
    hooks = []
    for name, layer in pipeline.unet.named_modules():
        if name.endswith(("to_k", "to_v")):
            for modules, _ in files:
                own = modules[layer.in_features, name[-1]]
                hooks.append(layer.register_forward_pre_hook(lambda _, x, own=own: (own(x[0]),)))
    noise, told = families.noise(2), ["a red circle", "a blue square"]
    conditions = sd.conditions(told)
    given = {"encoder_hidden_states": torch.from_numpy(np.array(conditions.context))}
    if conditions.added is not None:
        added = {"text_embeds": conditions.added.pooled, "time_ids": conditions.added.time_ids}
        given["added_cond_kwargs"] = {name: torch.from_numpy(np.array(one)) for name, one in added.items()}
    try:
        theirs = pipeline.unet(families.channels_first(noise), torch.tensor([700, 20]), **given).sample
        [hook.remove() for hook in hooks]
        plain = pipeline.unet(families.channels_first(noise), torch.tensor([700, 20]), **given).sample
    finally:
        [hook.remove() for hook in hooks]
    worn = attach(sd.networks.params["unet"], [ours for _, ours in files], [0.8, -0.5])
    with families.quick_compiles():
        got = sd.networks.executor.run(
            programs.predict, sd.networks.denoiser, worn, noise, np.array([700.0, 20.0], np.float32), conditions
        )
    theirs, plain = families.channels_last(theirs), families.channels_last(plain)
    assert relative(got, theirs) < 1e-4 and relative(plain, theirs) > 0.01
