"""ControlNets against diffusers on small random files: every residual, float32, <= 1e-5 relative.

What reads the files is sdjax.load_controlnet on one side and from_pretrained on the other; the authors' layout is
turned into diffusers' names by diffusers' own conversion.
"""

import tempfile
import time
from functools import cache
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.numpy import save_file

import sdjax
from sdjax.config.presets import PRESETS
from sdjax.core import tree
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.controlnet import HINT, ControlNet, HintEmbedding
from sdjax.nn.shapes import expected_network
from sdjax.nn.union import inner_and_outer
from sdjax.weights import names
from tests.control_nets import cldm, control_lora, controlnet_config, is_copied, net_tensors, union_config, write_net
from tests.parity.families import UNETS
from tests.parity.test_networks import TOLERANCE, relative

SIDE = 8  # latents


def unet_json(family: str) -> dict:
    """A family's config.json, as tests.control_nets wants it."""
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in UNETS[family].items()}
    return {"norm_num_groups": 8, **listed}


def inputs(config, b: int = 2, seed: int = 0, side: int = SIDE):
    """x, t, text, pooled text and sizes or None, a picture: torch's order of axes."""
    rng = np.random.default_rng(seed)
    unet = config.unet

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    seen = side * config.factor
    width = unet.projection_class_embeddings_input_dim
    added = None if width is None else (drawn(b, width - 6 * unet.addition_time_embed_dim), 100 * rng.random((b, 6)))
    picture = rng.random((b, 3, seen, seen)).astype(np.float32)
    t = np.array([3.0, 801.0], np.float32)[:b]
    return drawn(b, 4, side, side), t, drawn(b, 5, unet.cross_attention_dim), added, picture


@cache
def network(config):
    return jax.jit(lambda params, *args: ControlNet(config).apply({"params": params}, *args))


def ours(net, given, modes=None, scales=None, pictures=None):
    x, t, text, added, picture = given
    params = net.params({})
    embed = HintEmbedding(net.config)

    def hint_of(one):
        return embed.apply({"params": params[HINT]}, jnp.asarray(one.transpose(0, 2, 3, 1)))

    hint = hint_of(picture) if pictures is None else jnp.stack([hint_of(one) for one in pictures], axis=1)
    conditions = Conditions(
        jnp.asarray(text), None if added is None else Added(*(jnp.asarray(a, jnp.float32) for a in added))
    )
    run = jax.jit(lambda params, *args: ControlNet(net.config).apply({"params": params}, *args))
    return run(params, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(t), conditions, hint, modes, scales)


def theirs(module, given, **more):
    x, t, text, added, picture = (torch.tensor(one) if isinstance(one, np.ndarray) else one for one in given)
    told = {}
    if added is not None:
        pooled, ids = (torch.tensor(one, dtype=torch.float32) for one in added)
        told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    with torch.no_grad():
        cond = more.pop("controlnet_cond", picture)
        down, middle = module.eval()(x, t, text, cond, return_dict=False, **told, **more)
    return [*down, middle]


def check(mine, reference, bound=TOLERANCE):
    assert len(mine) == len(reference)
    assert max(relative(one, other) for one, other in zip(mine, reference, strict=True)) < bound
    assert all(one.abs().max() > 1e-2 for one in reference)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd1", {}),
        ("sd1", {"controlnet_conditioning_channel_order": "bgr"}),
        ("sd1", {"global_pool_conditions": True}),
        ("sd2", {}),
        ("sdxl", {}),
        ("sdxl", {"transformer_layers_per_block": [1, 1, 1], "mid_block_type": "UNetMidBlock2D"}),
    ],
)
def test_residuals(family, changes, tmp_path):
    folder = write_net(tmp_path / "net", controlnet_config(unet_json(family), **changes))
    net, module = sdjax.load_controlnet(folder), diffusers.ControlNetModel.from_pretrained(folder)
    given = inputs(net.config)
    check(ours(net, given), theirs(module, given))


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_authors_layout(family, prefix, tmp_path):
    """What sdjax calls the authors' tensors is what diffusers calls them."""
    config = controlnet_config(unet_json(family))
    folder = write_net(tmp_path / "net", config)
    authors = cldm(net_tensors(config), config, prefix)
    save_file(authors, folder / "diffusion_pytorch_model.safetensors")
    net = sdjax.load_controlnet(folder)
    hints = len(config["conditioning_embedding_out_channels"])
    assert hints == 4, "diffusers' table of names is for this many"
    converted = convert_controlnet_checkpoint({k: torch.tensor(v) for k, v in authors.items()}, config)
    for number, layer in ((0, "linear_1"), (2, "linear_2")):  # which diffusers leaves out, for ControlNets alone
        for leaf in ("weight", "bias"):
            if (array := authors.get(f"{prefix}label_emb.0.{number}.{leaf}")) is not None:
                converted[f"add_embedding.{layer}.{leaf}"] = torch.tensor(array)
    module = diffusers.ControlNetModel.from_config(config)
    module.load_state_dict(converted)
    given = inputs(net.config)
    check(ours(net, given), theirs(module, given))


def union(tmp_path: Path, types: int = 6, **changes):
    folder = write_net(tmp_path / "union", union_config(unet_json("sdxl"), types, **changes))
    return sdjax.load_controlnet(folder), diffusers.ControlNetUnionModel.from_pretrained(folder)


def kinds(net, modes: list[int], b: int = 2):
    """control_type as diffusers takes it, and modes as sdjax does."""
    flags = np.zeros((b, net.config.num_control_type), np.float32)
    flags[:, modes] = 1
    return torch.tensor(flags), jnp.asarray([modes] * b, jnp.int32)


@pytest.mark.parametrize("types", [6, 8])
def test_a_union_with_every_kind_of_map(types, tmp_path):
    """Both halves of a guided step are shown one map: of other batches diffusers makes a mixture (see nn.union)."""
    net, module = union(tmp_path, types)
    given = inputs(net.config)
    given = (*given[:4], given[4][[0, 0]])
    picture = torch.tensor(given[4])
    assert [names[0] for names in net.modes][-1] == ("segment" if types == 6 else "repaint")
    every = []
    for mode in range(types):
        flags, modes = kinds(net, [mode])
        inner, outer = inner_and_outer(modes, jnp.full((2, 1), 0.6))
        mine = [float(outer[0]) * one for one in ours(net, given, modes, inner, [given[4]])]
        more = {"control_type": flags, "control_type_idx": [mode], "controlnet_cond": [picture]}
        more["conditioning_scale"] = 0.6
        check(mine, theirs(module, given, **more))
        every.append(np.asarray(mine[0]))
    assert min(np.abs(every[0] - other).max() for other in every[1:]) > 1e-3


@pytest.mark.parametrize(("modes", "scales"), [([3, 1], [0.5, 0.8]), ([0, 5, 2], [1.0, 0.3, 0.7])])
def test_a_union_with_several_maps(modes, scales, tmp_path):
    """Of several maps the scales act inside; of one alone its scale is the residuals'."""
    net, module = union(tmp_path, num_trans_layer=2)
    given = inputs(net.config)
    rng = np.random.default_rng(5)
    pictures = [rng.random((1, *given[4].shape[1:])).astype(np.float32)[[0, 0]] for _ in modes]
    flags, own = kinds(net, modes)
    shown = [torch.tensor(one) for one in pictures]
    more = {"control_type": flags, "control_type_idx": modes, "controlnet_cond": shown, "conditioning_scale": scales}
    inner, outer = inner_and_outer(own, jnp.asarray([scales] * 2, jnp.float32))
    assert np.array_equal(outer, [1, 1])
    check(ours(net, given, own, inner, pictures), theirs(module, given, **more))
    # A map fewer is another picture's business: the same with room for one that is not there.
    more_room = jnp.concatenate([own, jnp.full((2, 1), -1, jnp.int32)], axis=1)
    padded = jnp.asarray([[*scales, 1.0]] * 2, jnp.float32)
    check(ours(net, given, more_room, padded, [*pictures, 9 * pictures[0]]), theirs(module, given, **more))


def test_a_control_lora(tmp_path):
    """Against diffusers' ControlNet whose kernels torch made of the U-Net's and the factors, in float64."""
    config = controlnet_config(unet_json("sdxl"))
    tensors = net_tensors(config)
    lora = control_lora(tensors, config)
    folder = write_net(tmp_path / "net", config)
    save_file(lora, folder / "diffusion_pytorch_model.safetensors")
    net = sdjax.load_controlnet(folder)
    unet = diffusers.UNet2DConditionModel(**UNETS["sdxl"], norm_num_groups=8)
    state = {name: array.detach().double() for name, array in unet.state_dict().items()}
    made = {name: torch.tensor(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        theirs_name = next(iter(cldm({name: array}, config, "")))
        if is_copied(name) and array.ndim > 1:
            up, down = (
                torch.tensor(lora[f"{theirs_name.removesuffix('.weight')}.{one}"]).double() for one in ("up", "down")
            )
            added = up.flatten(1) @ down.flatten(1)
            made[name] = (state[name] + added.reshape(state[name].shape)).float()
    module = diffusers.ControlNetModel.from_config(config)
    module.load_state_dict(made)

    class Made:
        """The net as it is with this U-Net."""

        config = net.config

        def params(self, _):
            return net.params(as_params(unet, net.config))

    given = inputs(net.config)
    check(ours(Made(), given), theirs(module, given))


def as_params(unet: torch.nn.Module, config) -> dict:
    """torch's U-Net as a tree of ours, by names alone; of blocks that the ControlNet copied."""
    state = unet.state_dict()
    paths = [path for path in tree.flatten(expected_network(config)) if not path[0].startswith("controlnet_")]
    return tree.unflatten({path: names.from_file(path, state[names.tensor_name(path)].numpy()) for path in paths})


def test_every_tensor_of_diffusers_is_one_of_ours():
    """By name: none that strict reading would miss, none that diffusers would draw for itself."""
    config = controlnet_config(unet_json("sd1"))
    module = diffusers.ControlNetModel.from_config(config)
    assert set(module.state_dict()) == set(net_tensors(config))
    union_module = diffusers.ControlNetUnionModel.from_config(union_config(unet_json("sdxl")))
    assert set(union_module.state_dict()) == set(net_tensors(union_config(unet_json("sdxl"))))


def full(family: str = "sd15", side: int = 64):
    """The published size, of random weights under which every layer keeps about its input's variance."""
    torch.manual_seed(0)
    unet = PRESETS[family].configs["unet"]
    config = {key: value for key, value in unet.items() if not key.startswith(("up_", "out_", "sample", "_"))}
    module = diffusers.ControlNetModel(**config, conditioning_embedding_out_channels=(16, 32, 96, 256)).eval()
    for parameter in module.parameters():
        drawn = torch.randn_like(parameter)
        shift = 1.0 if parameter.ndim == 1 and parameter[0] == 1 else 0.0
        parameter.data = drawn * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else shift + 0.1 * drawn
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        start = time.perf_counter()
        net = sdjax.load_controlnet(folder)
        print(f"{net} read in {time.perf_counter() - start:.1f} s")
        given = inputs(net.config, b=1, side=side)
        start = time.perf_counter()
        mine = jax.block_until_ready(ours(net, given))
        middle = time.perf_counter()
        reference = theirs(module, given)
        print(f"sdjax {middle - start:.1f} s with compiling, diffusers {time.perf_counter() - middle:.1f} s")
    away = [relative(one, other) for one, other in zip(mine, reference, strict=True)]
    print(f"{len(away)} residuals, largest difference by residual: {', '.join(f'{one:.1e}' for one in away)}")
    assert len(away) == net.config.residuals and max(away) <= 1e-4


if __name__ == "__main__":  # the published size: python -m tests.parity.test_controlnet
    full()
