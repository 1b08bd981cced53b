"""Control networks are read from every layout to the same parameters, at published sizes too."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.adapters.control import facts
from sdjax.adapters.control.controlnet import sgm_names
from sdjax.adapters.control.facts import config_of
from sdjax.config import ControlNetConfig, UNetConfig
from sdjax.config.presets import PRESETS
from sdjax.config.t2i_adapter import LIGHT, XL, T2IAdapterConfig
from sdjax.core import tree
from sdjax.nn.shapes import expected_network
from sdjax.weights import CheckpointError, ldm, names
from sdjax.weights.files import Entry
from tests import control_nets
from tests.checkpoints import UNET
from tests.control_nets import (
    FILE,
    cldm,
    controlnet_config,
    net_tensors,
    t2i_config,
    unet_params,
    union_config,
    write_net,
)
from tests.golden import make_control_tensors
from tests.golden.make_tensors import read
from tests.single_files import SMALL
from tests.test_hub import hub  # noqa: F401, a fixture

CONFIG = controlnet_config(UNET, factor=2)
XL_UNET = SMALL["sdxl"].configs["unet"]
WIDE_UNET = SMALL["sd15"].configs["unet"]
LLLITE = {
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (2, 640),
    "input_blocks_8_1_transformer_blocks_9_attn2_to_q": (3, 1280),
    "middle_block_1_transformer_blocks_0_attn1_to_v": (3, 1280),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_net(tmp_path_factory.mktemp("nets") / "canny", CONFIG)


def refused(source, match: str, error: type[Exception] = CheckpointError, **options) -> str:
    with pytest.raises(error, match=match) as caught:
        sdjax.load_controlnet(source, **options)
    assert str(caught.value).count("\n") < 20
    return str(caught.value)


def saved(path: Path, tensors, metadata=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def same(ours, theirs) -> bool:
    ours, theirs = tree.flatten(ours), tree.flatten(theirs)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[path], theirs[path]) for path in ours)


# Published sizes -----------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "tensors", "numbers"),
    [("sd15", 340, 361_279_120), ("sd21", 340, 364_228_240), ("sdxl", 844, 1_251_014_160)],
)
def test_published_sizes(preset, tensors, numbers):
    """Those of lllyasviel/control_v11p_sd15_canny, thibaud/controlnet-sd21 and diffusers/controlnet-canny-sdxl-1.0."""
    expected = tree.flatten(expected_network(ControlNetConfig.from_dict(PRESETS[preset].configs["unet"])))
    assert (len(expected), sum(np.prod(leaf.shape) for leaf in expected.values())) == (tensors, numbers)
    kernels = {path: leaf for path, leaf in expected.items() if path[0].startswith("controlnet_down_blocks")}
    widths = [kernels[f"controlnet_down_blocks.{j}", "kernel"].shape for j in range(len(kernels) // 2)]
    levels = [320] * 4 + [640] * 3 + [1280] * (2 if preset == "sdxl" else 5)
    assert widths == [(1, 1, width, width) for width in levels]


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (T2IAdapterConfig(), 77_369_280),
        (T2IAdapterConfig(LIGHT, resnets=4), 18_689_200),
        (T2IAdapterConfig(XL, downscale_factor=16), 79_028_160),
    ],
)
def test_published_t2i_adapters(config, numbers):
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(expected_network(config))) == numbers


@pytest.mark.parametrize("names_of", ["diffusers", "sgm"])
@pytest.mark.parametrize("preset", ["sd15", "sd21", "sdxl", "sdxl_refiner"])
def test_a_file_alone_tells_its_config(preset, names_of):
    """Heads and the like are the family's; all that shapes tell is read from them."""
    unet = PRESETS[preset].configs["unet"]
    config = ControlNetConfig.from_dict(unet | {"conditioning_channels": 1})
    modules = {} if names_of == "diffusers" else sgm_names(config)
    entries = {}
    for path, leaf in tree.flatten(expected_network(config)).items():
        name = ldm.renamed(names.tensor_name(path), modules)
        entries[name] = Entry(name, "F16", names.file_shapes(path, leaf.shape)[0], 0, 0)
    told = config_of(entries, names_of, "x.safetensors")
    assert told == replace(config, unet=replace(told.unet, sample_size=config.unet.sample_size))


def test_a_distilled_file_alone(monkeypatch, tmp_path):
    """With no transformers at all, as controlnet-canny-sdxl-1.0-small; the widths alone are SDXL's."""
    monkeypatch.setattr(facts, "PRESETS", SMALL)
    less = XL_UNET | {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"}
    path = saved(tmp_path / "small.safetensors", net_tensors(controlnet_config(less, layers_per_block=2)))
    net = sdjax.load_controlnet(path)
    assert net.config.unet.down_block_types == ("DownBlock2D",) * 3 and net.config.unet.heads == (2, 2, 2)
    assert net.config.unet.addition_time_embed_dim == 8


# The same net in every layout ----------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "dtype"), [("control_model.", np.float32), ("", np.float16), ("control_model.", ml_dtypes.bfloat16)]
)
def test_every_layout_gives_the_same_tree(folder, tmp_path, monkeypatch, prefix, dtype):
    monkeypatch.setattr(facts, "PRESETS", SMALL)
    config = controlnet_config(WIDE_UNET)
    tensors = net_tensors(config, dtype=dtype)
    diffusers = sdjax.load_controlnet(control_nets.write_folder(tmp_path / "depth", config, tensors))
    alone = sdjax.load_controlnet(saved(tmp_path / "control_depth.safetensors", tensors))
    authors = sdjax.load_controlnet(saved(tmp_path / "cldm.safetensors", cldm(tensors, config, prefix)))
    assert [net.name for net in (diffusers, alone, authors)] == ["depth", "control_depth", "cldm"]
    params = diffusers.params({})
    assert same(params, alone.params({})) and same(params, authors.params({}))
    assert diffusers.config.unet.heads == alone.config.unet.heads == (2, 2, 2, 2)
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype == dtype and not leaf.flags.owndata and not leaf.flags.writeable for leaf in leaves)
    expected = expected_network(diffusers.config)
    jax.tree.map(lambda have, want: np.testing.assert_equal(have.shape, want.shape), params, expected)


def test_the_whole_model_beside_it_is_left_aside(tmp_path, folder):
    tensors = cldm(net_tensors(CONFIG), CONFIG)
    beside = ("model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias", "betas", "cond_stage_model.x")
    path = folder.parent / "whole" / FILE
    saved(path, tensors | dict.fromkeys(beside, np.ones(3, np.float32)))
    (path.parent / "config.json").write_text(json.dumps(CONFIG))
    assert same(sdjax.load_controlnet(path).params({}), sdjax.load_controlnet(folder).params({}))


def test_a_pointwise_kernel_may_be_a_linear_layer(folder, tmp_path):
    tensors = net_tensors(CONFIG)
    squeezed = {name: a[..., 0, 0] if "proj_in.weight" in name else a for name, a in tensors.items()}
    assert squeezed["mid_block.attentions.0.proj_in.weight"].ndim == 2
    other = control_nets.write_folder(tmp_path / "x", CONFIG, squeezed)
    assert same(sdjax.load_controlnet(other).params({}), sdjax.load_controlnet(folder).params({}))


def test_a_variant_and_shards(tmp_path, folder):
    tensors = net_tensors(CONFIG)
    where = control_nets.write_folder(tmp_path / "x", CONFIG, tensors)
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    save_file(half, where / "diffusion_pytorch_model.fp16.safetensors")
    assert sdjax.load_controlnet(where).params({})["conv_in"]["bias"].dtype == np.float32
    assert sdjax.load_controlnet(where, variant="fp16").params({})["conv_in"]["bias"].dtype == np.float16
    refused(where, "has no variant 'fp8'.*'fp16'", variant="fp8")
    (where / FILE).unlink()
    items = sorted(tensors.items())
    files = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, part in zip(files, (items[:40], items[40:]), strict=True):
        save_file(dict(part), where / file)
    index = {"weight_map": {name: files[i >= 40] for i, (name, _) in enumerate(items)}}
    (where / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(sdjax.load_controlnet(where).params({}), sdjax.load_controlnet(folder).params({}))


def test_names_and_hashes(folder, tmp_path):
    net = sdjax.load_controlnet(folder, "mine")
    assert net.name == "mine" and net.source == folder / FILE and net.kind == "controlnet" and not net.needs_unet
    assert repr(net) == "<ControlAdapter 'mine': ControlNet for a model of its own kind (text 16 wide, channels 8, 16)>"
    assert sdjax.load_controlnet(folder / FILE).name == "canny"
    long = saved(tmp_path / "long.safetensors", net_tensors(CONFIG) | {"x": np.zeros(1 << 19, np.float32)})
    data = long.read_bytes()
    assert len(data) > 1 << 20
    far = replace(net, source=long)
    assert far.short_hash == hashlib.sha256(data[1 << 20 :][: 1 << 16]).hexdigest()[:8]
    assert net.short_hash == hashlib.sha256((folder / FILE).read_bytes()).hexdigest()[:8]


def test_a_union_knows_its_kinds(tmp_path):
    union = sdjax.load_controlnet(write_net(tmp_path / "u", union_config(XL_UNET, 8)))
    names = ("openpose", "canny", "lineart", "tile")
    assert union.kind == "union" and [union.kinds[name] for name in names] == [0, 3, 3, 6]
    fewer = sdjax.load_controlnet(write_net(tmp_path / "v", union_config(XL_UNET, 6)))
    assert set(fewer.kinds.values()) == set(range(6)) and "tile" not in fewer.kinds


# What needs the U-Net's own weights ----------------------------------------


def test_a_difference_is_added_to_the_unet_it_is_used_with(tmp_path, folder):
    path = saved(tmp_path / FILE, cldm(net_tensors(CONFIG), CONFIG) | {"difference": np.zeros(1, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    net, whole = sdjax.load_controlnet(path), sdjax.load_controlnet(folder).params({})
    assert net.needs_unet
    flat = tree.flatten(whole)
    for dtype in (np.float32, np.float16):
        unet = unet_params(dtype)
        own = tree.flatten(unet)
        for leaf, array in tree.flatten(net.params(unet)).items():
            copied = not leaf[0].startswith("controlnet_")
            wanted = (own[leaf].astype(np.float32) + flat[leaf]).astype(dtype) if copied else flat[leaf]
            assert array.dtype == wanted.dtype and np.array_equal(array, wanted), leaf
    nine = unet_params(in_channels=9)
    made = net.params(nine)["conv_in"]["kernel"]
    assert np.array_equal(made, nine["conv_in"]["kernel"][:, :, :4] + whole["conv_in"]["kernel"])
    with pytest.raises(ValueError, match=r"'diffusion_py.*|.*and this U-Net has one of .*another family"):
        net.params(unet_params(block_out_channels=[8, 24]))
    with pytest.raises(ValueError, match="and this U-Net has none"):
        net.params({})


def test_a_control_lora_is_the_unet_and_its_factors(tmp_path, folder):
    """By einsum, in float64: what stands here shares nothing with the code that is tested."""
    tensors = net_tensors(CONFIG)
    lora = control_nets.control_lora(tensors, CONFIG)
    dropped = "input_blocks.1.0.in_layers.0.weight"  # what its file does not have is the U-Net's
    del lora[dropped]
    path = saved(tmp_path / FILE, lora)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    net, unet = sdjax.load_controlnet(path, "lora"), unet_params()
    assert (net.kind, net.needs_unet) == ("control_lora", True)
    made, own = tree.flatten(net.params(unet)), tree.flatten(unet)
    assert made.keys() == tree.flatten(expected_network(net.config)).keys()
    factors = 0
    for leaf, array in made.items():
        theirs = control_nets.cldm_name(names.tensor_name(leaf), CONFIG)
        layer = theirs.removesuffix(".weight")
        if f"{layer}.up" in lora and leaf[-1] == "kernel":
            up, down = (lora[f"{layer}.{one}"].astype(np.float64) for one in ("up", "down"))
            if up.ndim == 4:
                added = np.einsum("or,rihw->hwio", up[:, :, 0, 0], down)
            else:
                added = np.einsum("or,ri->io", up, down)
            np.testing.assert_allclose(array, own[leaf] + added, rtol=1e-5, atol=1e-6)
            factors += 1
        else:
            stored = own[leaf] if theirs == dropped else names.from_file(leaf, tensors[names.tensor_name(leaf)])
            assert np.array_equal(array, stored), leaf
    assert factors > 30
    lora.pop("middle_block.0.in_layers.2.up")
    saved(tmp_path / FILE, lora)
    refused(path, "middle_block.0.in_layers.2.down without the other factor")


# T2I-Adapters and LLLites --------------------------------------------------


def theirs_of(name: str, light: bool) -> str:
    """The authors' name of a T2I-Adapter's tensor."""
    name = name.removeprefix("adapter.")
    if found := re.fullmatch(r"body\.(\d)\.resnets\.(\d)\.(.*)", name):
        stage, j, rest = int(found[1]), int(found[2]), found[3]
        return f"body.{stage}.body.{j}.{rest}" if light else f"body.{2 * stage + j}.{rest}"
    if (found := re.fullmatch(r"body\.(\d)\.in_conv\.(.*)", name)) and not light:
        return f"body.{2 * int(found[1])}.in_conv.{found[2]}"
    return name


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter", "full_adapter_xl"])
@pytest.mark.parametrize("prefix", ["", "adapter."])
def test_a_t2i_adapter_in_every_layout(tmp_path, kind, prefix):
    light = {"channels": [8, 16, 16], "num_res_blocks": 3} if kind == "light_adapter" else {}
    widths = [8, 16, 16] if kind == "full_adapter_xl" else [8, 16, 16, 24]
    config = t2i_config({"block_out_channels": widths}, in_channels=1, adapter_type=kind, **light)
    tensors = net_tensors(config)
    diffusers = sdjax.load_controlnet(control_nets.write_folder(tmp_path / "a", config, tensors))
    alone = sdjax.load_controlnet(saved(tmp_path / "b.safetensors", tensors))
    authors = {prefix + theirs_of(name, "light" in kind): array for name, array in tensors.items()}
    original = sdjax.load_controlnet(saved(tmp_path / "c.safetensors", authors))
    assert diffusers.kind == alone.kind == original.kind == "t2i"
    assert diffusers.config == alone.config == original.config and diffusers.config.in_channels == 1
    assert same(diffusers.params({}), alone.params({})) and same(diffusers.params({}), original.params({}))


def test_an_lllite_from_its_file(tmp_path):
    tensors = control_nets.lllite_tensors(LLLITE)
    net = sdjax.load_controlnet(saved(tmp_path / "x.safetensors", tensors, {"lllite.mlp_dim": "6"}))
    assert net.kind == "lllite" and net.metadata == {"lllite.mlp_dim": "6"}
    found = [(".".join(one.path), one.depth, one.condition, one.inner, one.features) for one in net.config.modules]
    assert found == [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 2, 8, 6, 640),
        ("down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_q", 3, 8, 6, 1280),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_v", 3, 8, 6, 1280),
    ]
    params = net.params({})
    for name, path in zip(LLLITE, found, strict=True):
        for layer in ("conditioning1.0", "down.0", "mid.0", "up.0"):
            array = tensors[f"lllite_unet_{name}.{layer}.weight"]
            turned = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            assert np.array_equal(params[path[0]][layer]["kernel"], turned)
    expected = expected_network(UNetConfig.from_dict(PRESETS["sdxl"].configs["unet"]))
    net.check(UNetConfig.from_dict(PRESETS["sdxl"].configs["unet"]), expected, "sdxl")
    small = UNetConfig.from_dict(UNET)
    with pytest.raises(ValueError, match="LLLite 'x' is for SDXL: .*640 channels at down_blocks.1.*tiny has no"):
        net.check(small, expected_network(small), "tiny")
    bad = dict(tensors)
    first = f"lllite_unet_{next(iter(LLLITE))}"
    bad.pop(f"{first}.mid.0.bias")
    refused(saved(tmp_path / "x.safetensors", bad), "(?s)1 missing.*attn1_to_q.mid.0.bias")
    bad = tensors | {f"{first}.conditioning1.0.weight": np.ones((4, 3, 5, 5), np.float32)}
    refused(saved(tmp_path / "x.safetensors", bad), r"conditioning1 has kernels \[5, 4\]")
    bad = tensors | {"lllite_unet_input_blocks_4_0_in_layers_2.up.0.bias": np.ones(3, np.float32)}
    refused(saved(tmp_path / "x.safetensors", bad), "input_blocks_4_0_in_layers_2.up.0.bias means nothing here")
    bad = tensors | {f"{first}.down.0.weight": np.ones((6, 640, 1, 1), np.float32)}
    refused(saved(tmp_path / "x.safetensors", bad), "down.0.weight must have 2 axes")


# The Hub ------------------------------------------------------------------
def test_from_the_hub(hub, folder, tmp_path):  # noqa: F811
    """The one network that is meant, its config, and nothing else."""
    data, config = (folder / FILE).read_bytes(), (folder / "config.json").read_bytes()
    hub.repositories["owner/name"] = {
        "README.md": b"x", "config.json": config, FILE: data, "diffusion_pytorch_model.bin": b"a pickle",
        "deeper/config.json": config, f"deeper/{FILE}": data, "loose.safetensors": data, "old.pth": b"a pickle",
    }  # fmt: skip
    net = sdjax.load_controlnet("owner/name")
    assert net.name == "name" and same(net.params({}), sdjax.load_controlnet(folder).params({}))
    held = {str(one.relative_to(net.source.parent)) for one in net.source.parent.rglob("*")}
    assert held == {"config.json", FILE}
    assert sdjax.load_controlnet("owner/name/deeper").config == net.config
    assert sdjax.load_controlnet(f"owner/name/deeper/{FILE}").config == net.config
    refused("owner/name/old.pth", "old.pth is a pickle")
    refused("owner/name/other.safetensors", "(?s)holds no other.safetensors; it holds:.*loose.safetensors")
    refused("owner/name/loose.safetensors", "no published family")


@pytest.mark.parametrize("repository", make_control_tensors.CONFIGS)
def test_names_and_shapes_are_the_published(repository):
    """All that diffusers' network of the repository's config holds, and nothing else."""
    config = control_nets.network_config(make_control_tensors.CONFIGS[repository])
    prefix = "adapter." if isinstance(config, T2IAdapterConfig) else ""
    ours = {}
    for path, leaf in tree.flatten(expected_network(config)).items():
        name = names.tensor_name(path)
        stored = names.file_shapes(path, leaf.shape)[0]
        if ".attn.v_proj." in name:  # torch keeps queries, keys and values in one
            name, stored = name.replace(".v_proj.", ".in_proj_"), (3 * stored[0], *stored[1:])
        ours[prefix + name] = stored
    assert ours == read(make_control_tensors.PATH)[repository]
