"""Each network against torch on small random configs: the same weights, the same input, float32, <= 1e-5 relative."""

from dataclasses import replace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sdjax.config import ClipTextConfig, UNetConfig, VaeConfig
from sdjax.nn.attention import cross_keys_values
from sdjax.nn.clip import ClipTextEncoder
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.unet import UNet
from sdjax.nn.vae import Autoencoder

TOLERANCE = 1e-5


def relative(ours: jax.Array, theirs: torch.Tensor) -> float:
    """Largest difference over the reference's largest value; `theirs` in torch's channel order where 4-d."""
    theirs = theirs.detach().numpy()
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def to_params(module: torch.nn.Module, prefix: str = "") -> dict:
    """The module's state dict as a nested tree in our layout, written independently of sdjax.weights."""
    tree: dict = {}
    for name, tensor in module.state_dict().items():
        *path, leaf = (prefix + name).split(".")
        value = tensor.numpy()
        if leaf == "weight":
            leaf = {4: "kernel", 2: "embedding" if path[-1].endswith("embedding") else "kernel", 1: "scale"}[value.ndim]
            if leaf == "kernel":
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        tree[(*path, leaf)] = value
    return tree


def nested_like(expected: dict, flat: dict) -> dict:
    """`flat` (keyed by single names) in the nesting of `expected` (keyed by the modules' dotted names)."""
    out = {}
    for name, child in expected.items():
        parts = tuple(name.split("."))
        inside = {key[len(parts) :]: value for key, value in flat.items() if key[: len(parts)] == parts}
        out[name] = nested_like(child, inside) if isinstance(child, dict) else inside[()]
    return out


def load(module, flat: dict, *args, **kwargs) -> dict:
    expected = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))["params"]
    params = nested_like(expected, flat)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), expected, params)
    assert len(jax.tree.leaves(params)) == len(flat)
    return {"params": params}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Norm scales and biases away from 1 and 0, so that a dropped one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
DEEP = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=6, num_attention_heads=2)
WIDE = dict(hidden_size=96, intermediate_size=200, num_hidden_layers=1, num_attention_heads=12)
CLIP = {
    **{f"sd1-{i}": dict(hidden_act="quick_gelu", **sizes) for i, sizes in enumerate((SMALL, DEEP, WIDE))},
    **{f"sd2-{i}": dict(hidden_act="gelu", **sizes) for i, sizes in enumerate((SMALL, DEEP, WIDE))},
    **{f"projected-{i}": dict(hidden_act="gelu", projection_dim=20, **sizes) for i, sizes in enumerate((SMALL, DEEP))},
}


@pytest.mark.parametrize("name", CLIP)
def test_text_encoder(name):
    torch.manual_seed(0)
    theirs_config = transformers.CLIPTextConfig(vocab_size=100, max_position_embeddings=16, **CLIP[name])
    projects = name.startswith("projected")
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    theirs = randomise(kind(theirs_config), 1)
    config = ClipTextConfig.from_dict(theirs_config.to_dict() | {"architectures": [kind.__name__]})
    ids = np.random.default_rng(0).integers(0, 100, (2, 16)).astype(np.int32)
    prefix = "" if any(key.startswith("text_model.") for key in theirs.state_dict()) else "text_model."
    ours = ClipTextEncoder(config)
    out = ours.apply(load(ours, to_params(theirs, prefix), jnp.asarray(ids)), jnp.asarray(ids))
    want = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
    assert relative(out.last_hidden_state, want.last_hidden_state) <= TOLERANCE
    assert relative(out.pooled, want.text_embeds if projects else want.pooler_output) <= TOLERANCE
    assert len(out.hidden_states) == len(want.hidden_states)
    for mine, other in zip(out.hidden_states, want.hidden_states, strict=True):
        assert relative(mine, other) <= TOLERANCE


CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
UNETS = {
    "sd1": dict(attention_head_dim=4),
    "sd1-deep": dict(attention_head_dim=8, layers_per_block=[3, 1]),
    "sd1-odd": dict(attention_head_dim=4, in_channels=9, layers_per_block=1),
    "sd2": dict(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True),
    "sd2-one-head": dict(attention_head_dim=[1, 2], use_linear_projection=True, layers_per_block=1),
    "sd2-no-upcast": dict(
        attention_head_dim=[4, 8], use_linear_projection=True, layers_per_block=3, norm_num_groups=32
    ),
    "upscaler": dict(attention_head_dim=4, in_channels=7, num_class_embeds=10, only_cross_attention=[True, False]),
    "class-projection": dict(
        attention_head_dim=4, class_embed_type="projection", projection_class_embeddings_input_dim=20
    ),
    "sdxl": dict(
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 16,
        transformer_layers_per_block=[1, 2],
        time_cond_proj_dim=6,
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    torch.manual_seed(0)
    sd2 = name.startswith("sd2")
    extra = {"layers_per_block": 2, "norm_num_groups": 8} | UNETS[name]
    theirs = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        cross_attention_dim=24,
        down_block_types=(CROSS, PLAIN) if not sd2 else (PLAIN, CROSS),
        up_block_types=(UP_PLAIN, UP_CROSS) if not sd2 else (UP_CROSS, UP_PLAIN),
        **extra,
    )
    randomise(theirs, 1)
    ours = UNet(UNetConfig.from_dict(dict(theirs.config)))
    rng = np.random.default_rng(0)
    size = (15, 17) if name == "sd1-odd" else (16, 12)
    x = rng.standard_normal((2, *size, theirs.config.in_channels)).astype(np.float32)
    t = np.array([981.0, 20.4], np.float32)
    context = rng.standard_normal((2, 7, 24)).astype(np.float32)
    ours_extra, theirs_extra = conditions(name, rng)
    told = Conditions(jnp.asarray(context), **ours_extra)
    params = load(ours, to_params(theirs), x, t, told)
    out = ours.apply(params, x, t, told)
    want = theirs(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), torch.from_numpy(context), **theirs_extra
    ).sample
    assert relative(out, want) <= TOLERANCE
    hoisted = cross_keys_values(params["params"], jnp.asarray(context), jnp.float32)
    again = ours.apply(params, x, t, replace(told, context=hoisted))
    assert relative(again, want) <= TOLERANCE


def conditions(name: str, rng: np.random.Generator) -> tuple[dict, dict]:
    """The family's extra inputs, for ours and for theirs."""
    if name == "upscaler":
        labels = np.array([3, 7])
        return {"class_labels": labels}, {"class_labels": torch.from_numpy(labels)}
    if name == "class-projection":
        labels = rng.standard_normal((2, 20)).astype(np.float32)
        return {"class_labels": labels}, {"class_labels": torch.from_numpy(labels)}
    if name == "sdxl":
        pooled = rng.standard_normal((2, 16)).astype(np.float32)
        ids = np.array([[512, 512, 0, 8, 512, 500]] * 2, np.float32)
        guidance = rng.standard_normal((2, 6)).astype(np.float32)
        kwargs = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(ids)}
        return (
            {"added": Added(jnp.asarray(pooled), jnp.asarray(ids)), "guidance": jnp.asarray(guidance)},
            {"added_cond_kwargs": kwargs, "timestep_cond": torch.from_numpy(guidance)},
        )
    return {}, {}


VAES = {
    "plain": dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8),
    "deep": dict(block_out_channels=(8, 16, 16, 32), layers_per_block=2, norm_num_groups=4, scaling_factor=0.13025),
    "bare": dict(
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        norm_num_groups=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        latent_channels=8,
    ),
}


@pytest.mark.parametrize("name", VAES)
def test_vae(name):
    torch.manual_seed(0)
    levels = len(VAES[name]["block_out_channels"])
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **VAES[name]
    )
    randomise(theirs, 1)
    config = VaeConfig.from_dict(dict(theirs.config))
    ours = Autoencoder(config)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
    params = load(ours, to_params(theirs), pixels)
    posterior = ours.apply(params, pixels, method="encode")
    want = theirs.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).latent_dist
    assert relative(posterior.mean, want.mean) <= TOLERANCE
    assert relative(posterior.log_variance, want.logvar) <= TOLERANCE
    decoded = ours.apply(params, posterior.mean, method="decode")
    assert relative(decoded, theirs.decode(want.mean).sample) <= TOLERANCE
