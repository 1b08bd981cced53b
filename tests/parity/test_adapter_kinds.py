"""Kinds of adapters against the programs that train them: LyCORIS' modules and peft's layers.

Each is made there, filled with random numbers and saved by its own state_dict; what we make of those tensors is to be
what the module itself says its merged weight is. But for LoHa and LoKr: LyCORIS trains them with alpha / r, and merges
them with its square (`get_diff_weight` scales what `get_weight` has scaled; ADAPTERS.md 2.1). There it is `get_weight`.
"""

import numpy as np
import peft
import pytest
import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule

from sdjax.adapters.kinds import read_module


def linear(outputs=24, inputs=16, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(inputs, outputs)


def conv(outputs=24, inputs=16, size=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Conv2d(inputs, outputs, size, padding=size // 2)


def filled(module, seed=1, scale=0.3):
    """The module with random numbers in all of its own parameters; lengths and rescales stay positive."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not name.startswith("org_module"):
            drawn = scale * torch.randn_like(parameter)
            parameter.data = drawn.abs() + 0.5 if name.split(".")[-1] in ("dora_scale", "rescale") else drawn
    return module


def tensors_of(module):
    return {name: one.detach().numpy() for name, one in module.state_dict().items() if not name.startswith("org_")}


LOKR = {
    "both whole": (dict(lora_dim=100_000), linear),
    "w2 factored": (dict(lora_dim=2, factor=4), linear),
    "both factored": (dict(lora_dim=1, factor=8, decompose_both=True), lambda: linear(64, 64)),
    "convolution, whole": (dict(lora_dim=100_000), conv),
    "convolution, factored": (dict(lora_dim=2, factor=4), conv),
    "convolution, Tucker": (dict(lora_dim=2, factor=4, use_tucker=True), conv),
    "full matrix": (dict(lora_dim=2, full_matrix=True), linear),
}
ADDITIVE = {
    "LoRA": (LoConModule, {}, linear),
    "LoCon": (LoConModule, {}, conv),
    "LoCon, mid": (LoConModule, dict(use_tucker=True), conv),
    "1x1": (LoConModule, {}, lambda: conv(size=1)),
    "rsLoRA": (LoConModule, dict(rs_lora=True), linear),
    "LoHa": (LohaModule, {}, linear),
    "LoHa of a convolution": (LohaModule, {}, conv),
    "LoHa, Tucker": (LohaModule, dict(use_tucker=True), conv),
    **{f"LoKr, {name}": (LokrModule, *one) for name, one in LOKR.items()},
}


def made(kind, base, **how):
    return filled(kind("m", base, **{"lora_dim": 4, "alpha": 3, **how}))


def added(module, scale=1.0):
    """What a module adds to a weight as it is trained."""
    if isinstance(module, LohaModule | LokrModule):
        return scale * module.get_weight(module.org_weight.shape)
    return module.get_diff_weight(scale)[0]


def close(ours, theirs, tolerance=1e-6):
    theirs = theirs.detach().numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", ADDITIVE)
def test_what_lycoris_adds(name):
    kind, how, base = ADDITIVE[name]
    layer = base()
    module, weight = made(kind, layer, **how), layer.weight.detach().numpy().copy()
    found = read_module(tensors_of(module))["weight"]
    theirs = added(module, 0.7)
    assert float(theirs.detach().abs().max()) > 1e-3
    close(found.difference(weight, 0.7), theirs, 1e-6)
    close(found.apply(weight, 0.7), layer.weight + theirs, 1e-6)
    if (factors := found.factors()) is not None:
        down, up = factors
        close(np.einsum("or,r...->o...", up, down).reshape(weight.shape), added(module), 2e-6)


@pytest.mark.parametrize("on_output", [True, False], ids=["outputs", "inputs"])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", ["LoRA", "LoCon", "LoCon, mid", "LoHa", "LoHa, Tucker", "LoKr, w2 factored"])
def test_dora_as_lycoris_scales_it(name, scale, on_output):
    kind, how, base = ADDITIVE[name]
    layer = base()
    module = made(kind, layer, weight_decompose=True, wd_on_out=on_output, **how)
    weight, tensors = layer.weight.detach().numpy().copy(), tensors_of(module)
    found = read_module(tensors, "lycoris")["weight"]
    assert found.kind.startswith("DoRA")
    # Their own sum W + D, right in each of their versions, under their own decomposition.
    moved = layer.weight + added(module)
    close(found.apply(weight, scale), module.apply_weight_decompose(moved, scale), 2e-6)
    if scale == 1:
        close(read_module(tensors)["weight"].apply(weight, 1.0), module.apply_weight_decompose(moved, 1.0), 2e-6)


@pytest.mark.parametrize(
    "how", [{}, {"rescaled": True}, {"constraint": 0.002}], ids=["plain", "rescaled", "constraint"]
)
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("base", [linear, conv])
@pytest.mark.parametrize("kind", [DiagOFTModule, ButterflyOFTModule])
def test_rotations(kind, base, scale, how):
    layer = base(32, 16)
    module = filled(kind("m", layer, lora_dim=4, **how))
    weight, tensors = layer.weight.detach().numpy().copy(), tensors_of(module)
    assert read_module(tensors)["weight"].kind == ("OFT" if kind is DiagOFTModule else "BOFT")
    theirs, _ = module.get_merged_weight(scale)
    close(read_module(tensors, "lycoris")["weight"].apply(weight, scale), theirs, 3e-6)
    full, _ = module.get_merged_weight(1.0)
    straight = layer.weight + scale * (full - layer.weight)
    close(read_module(tensors)["weight"].apply(weight, scale), straight, 3e-6)
    if how.get("constraint"):
        loose = read_module({**tensors, "alpha": np.zeros(())})["weight"].apply(weight, 1.0)
        assert np.abs(loose - full.detach().numpy()).max() > 1e-2  # the constraint does something here


@pytest.mark.parametrize("base", [linear, conv])
def test_glora(base):
    layer = base()
    module, weight = made(GLoRAModule, layer), layer.weight.detach().numpy().copy()
    theirs, _ = module.get_merged_weight(0.7)
    close(read_module(tensors_of(module))["weight"].apply(weight, 0.7), theirs, 2e-6)


@pytest.mark.parametrize("on_input", [True, False], ids=["inputs", "outputs"])
@pytest.mark.parametrize("base", [linear, conv])
def test_ia3(base, on_input):
    layer = base()
    module = filled(IA3Module("m", layer, train_on_input=on_input))
    weight, tensors = layer.weight.detach().numpy().copy(), tensors_of(module)
    assert int(tensors["on_input"]) == on_input
    close(read_module(tensors)["weight"].apply(weight, 0.7), module.get_merged_weight(0.7)[0], 2e-6)


def test_norms():
    torch.manual_seed(0)
    layer = torch.nn.GroupNorm(4, 16)
    layer.weight.data, layer.bias.data = torch.randn(16), torch.randn(16)
    module = filled(NormModule("m", layer))
    found = read_module(tensors_of(module))
    weight, bias = module.get_merged_weight(0.7)
    close(found["weight"].apply(layer.weight.detach().numpy().copy(), 0.7), weight)
    close(found["bias"].apply(layer.bias.detach().numpy().copy(), 0.7), bias)


PEFT = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "lora_B.bias": "lora_up.bias"}


def by_peft(config, layer, seed=3):
    """(the layer peft makes of one, the tensors it saves, by our names)."""
    model = peft.get_peft_model(torch.nn.Sequential(layer), config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data = parameter.data.abs() + 0.5
    saved = peft.get_peft_model_state_dict(model)
    prefix = "base_model.model.0."
    tensors = {name.removeprefix(prefix): one.detach().numpy() for name, one in saved.items()}
    return model.base_model.model[0], {PEFT.get(name, name): one for name, one in tensors.items()}


def merged_by_peft(wrapped, scale=1.0):
    wrapped.scale_layer(scale)
    wrapped.merge(safe_merge=True)
    found = wrapped.get_base_layer()
    return found.weight.detach(), found.bias.detach()


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("how", [
    dict(), dict(use_rslora=True), dict(use_dora=True), dict(lora_bias=True)
], ids=["LoRA", "rsLoRA", "DoRA", "its bias"])  # fmt: skip
@pytest.mark.parametrize("base", [linear, conv])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_lora_by_peft(base, how, scale):
    layer = base()
    weight, bias = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["0"], **how)
    wrapped, tensors = by_peft(config, layer)
    alpha = 2 * 4**0.5 if how.get("use_rslora") else 2.0  # peft's files have none: it stands in adapter_config.json
    found = read_module({**tensors, "alpha": np.array(alpha)}, "peft")
    theirs, their_bias = merged_by_peft(wrapped, scale)
    assert found["weight"].kind == ("DoRA" if how.get("use_dora") else "LoCon" if base is conv else "LoRA")
    close(found["weight"].apply(weight, scale), theirs, 2e-6)
    if how.get("lora_bias"):
        close(found["bias"].apply(bias, scale), their_bias, 2e-6)
    else:
        assert set(found) == {"weight"} and np.array_equal(bias, their_bias)


@pytest.mark.parametrize("share", [True, False], ids=["one block", "blocks"])
@pytest.mark.parametrize("base", [linear, conv])
def test_oft_by_peft(base, share):
    layer = base()
    weight = layer.weight.detach().numpy().copy()
    config = peft.OFTConfig(
        oft_block_size=4, block_share=share, use_cayley_neumann=True, num_cayley_neumann_terms=5, target_modules=["0"]
    )  # fmt: skip
    wrapped, tensors = by_peft(config, layer)
    assert set(tensors) == {"oft_R.weight"}
    wrapped.merge(safe_merge=True)
    found = read_module(tensors, "peft")["weight"]
    close(found.apply(weight, 1.0), wrapped.get_base_layer().weight, 2e-6)
    assert np.abs(found.apply(weight, 1.0) - weight).max() > 0.1
