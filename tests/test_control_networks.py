"""What control networks compute: a fresh one nothing, one told the time beforehand the same as ever."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.adapters.control import load_controlnet
from sdjax.config import ControlNetConfig, UNetConfig
from sdjax.nn.attention import cross_keys_values
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.controlnet import HINT, ControlNet, HintEmbedding, controlnet_time_shifts, init_from_unet
from sdjax.nn.linear import put_before
from sdjax.nn.lllite import LLLiteTokens, lllite_steps
from sdjax.nn.shapes import expected_network
from sdjax.nn.t2i_adapter import halve, unshuffle
from sdjax.nn.unet import UNet
from sdjax.nn.union import inner_and_outer
from tests.checkpoints import UNET, random_params
from tests.control_nets import XL_UNET, controlnet_config, lllite_tensors, unet_params, union_config

CONFIG = controlnet_config(UNET, factor=2)


def inputs(config: ControlNetConfig, b: int = 2, side: int = 8, seed: int = 0):
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    unet = config.unet
    width = unet.projection_class_embeddings_input_dim or 0
    added = Added(drawn(b, width - 6 * (unet.addition_time_embed_dim or 0)), drawn(b, 6)) if width else None
    conditions = Conditions(drawn(b, 5, unet.cross_attention_dim), added)
    picture = jnp.asarray(rng.random((b, side * config.factor, side * config.factor, 3)), jnp.float32)
    return drawn(b, side, side, unet.in_channels), jnp.array([3.0, 801.0])[:b], conditions, picture


@cache
def network(config: ControlNetConfig):
    """Of parameters, x, t, conditions, the hint, and of a Union modes and scales."""
    return jax.jit(lambda params, *args: ControlNet(config).apply({"params": params}, *args))


def hint_of(config, params, picture):
    return HintEmbedding(config).apply({"params": params[HINT]}, picture)


def test_a_fresh_net_changes_nothing():
    config = ControlNetConfig.from_dict(CONFIG)
    unet = unet_params(in_channels=9)
    params = init_from_unet(unet, config, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, expected_network(config))
    x, t, conditions, picture = inputs(config)
    hint = hint_of(config, params, picture)
    residuals = network(config)(params, x, t, conditions, hint)
    assert len(residuals) == config.outputs == 5
    assert all(not np.any(one) for one in (hint, *residuals))
    # Yet all of it is there: with its convolutions out no longer zero, it says what the U-Net's way down says.
    params["controlnet_down_blocks.0"] = {"kernel": jnp.eye(8)[None, None], "bias": jnp.zeros(8)}
    first = network(config)(params, x, t, conditions, hint)[0]
    kernel = np.asarray(unet["conv_in"]["kernel"][:, :, :4], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    wanted = np.einsum("bhwiyx,yxio->bhwo", windows, kernel) + unet["conv_in"]["bias"]
    np.testing.assert_allclose(first, wanted, atol=1e-5)
    grown = any(np.any(leaf) for leaf in jax.tree.leaves(params[HINT]["conv_in"]))
    assert grown, "the convolutions over the picture are drawn, and learn from the first step on"
    with pytest.raises(ValueError, match="a Union cannot be begun from a U-Net alone"):
        init_from_unet(unet, ControlNetConfig.from_dict(union_config(XL_UNET)), jax.random.key(0))


def test_the_time_and_the_text_made_beforehand():
    config = ControlNetConfig.from_dict(controlnet_config(XL_UNET, global_pool_conditions=True))
    params = random_params(expected_network(config), np.float32, 0)
    x, t, conditions, picture = inputs(config)
    hint = hint_of(config, params, picture)
    plain = network(config)(params, x, t, conditions, hint)
    shifts = controlnet_time_shifts(config, jnp.float32, params, t, conditions.beside_time())
    made = replace(conditions, context=cross_keys_values(params, conditions.context, jnp.float32))
    ahead = network(config)(params, x, shifts, made, hint)
    for one, other in zip(plain, ahead, strict=True):
        assert one.shape[1:3] == (1, 1) and np.any(one)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_union_of_hints():
    """A picture's hints are as many as it has: what is not there counts for nothing, and order does not count."""
    config = ControlNetConfig.from_dict(union_config(XL_UNET, 8))
    params = random_params(expected_network(config), np.float32, 0)
    x, t, conditions, picture = inputs(config)
    hints = jnp.stack([hint_of(config, params, one) for one in (picture, 1 - picture)], axis=1)

    def run(hints, modes, scales=None, rows=slice(None)):
        cut = jax.tree.map(lambda leaf: leaf[rows], conditions)
        modes = jnp.asarray(modes, jnp.int32)
        return network(config)(params, x[rows], t[rows], cut, hints, modes, scales)[0]

    both = run(hints, [[3, 1], [3, -1]], jnp.array([[0.5, 0.7], [1.0, 1.0]]))
    swapped = run(hints[:, ::-1], [[1, 3], [-1, 3]], jnp.array([[0.7, 0.5], [1.0, 1.0]]))
    np.testing.assert_allclose(both, swapped, rtol=1e-4, atol=1e-5)
    alone = run(hints[1:, :1], [[3]], rows=slice(1, 2))
    np.testing.assert_allclose(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(run(hints, [[3, 1], [2, -1]])[1] - both[1]).max() > 1e-3, "the kind of a map counts"
    shifts = controlnet_time_shifts(config, jnp.float32, params, t, conditions, jnp.array([[3, 1], [3, -1]]))
    no_kinds = controlnet_time_shifts(config, jnp.float32, params, t, conditions, jnp.array([[-1, -1], [-1, -1]]))
    assert any(np.abs(shifts[path] - no_kinds[path]).max() > 1e-3 for path in shifts)
    with pytest.raises(ValueError, match="give modes="):
        network(config)(params, x, t, conditions, hints)


def test_whose_scale_a_single_map_has():
    modes = jnp.array([[3, -1, -1], [3, 1, -1], [-1, -1, 2]])
    inner, outer = inner_and_outer(modes, jnp.array([[0.5, 7, 7], [0.5, 0.7, 7], [7, 7, 0.2]]))
    np.testing.assert_allclose(outer, [0.5, 1, 0.2])
    np.testing.assert_allclose(inner[0], [1, 1, 1])
    np.testing.assert_allclose(inner[1, :2], [0.5, 0.7])
    np.testing.assert_allclose(inner[2], [1, 1, 1])


def test_pixels_become_channels():
    picture = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    made = np.asarray(unshuffle(jnp.asarray(picture), 2, 3))
    assert made.shape == (2, 2, 3, 12)
    for c, dy, dx in np.ndindex(3, 2, 2):  # torch.nn.PixelUnshuffle: channel c f^2 + dy f + dx
        assert np.array_equal(made[..., 4 * c + 2 * dy + dx], picture[:, dy::2, dx::2, c])
    with pytest.raises(ValueError, match="of 3 channels.* multiples of 4; it is 4 x 6 x 3"):
        unshuffle(jnp.asarray(picture), 4, 3)
    with pytest.raises(ValueError, match="it is 4 x 6 x 3"):
        unshuffle(jnp.asarray(picture), 2, 1)
    odd = np.asarray(halve(jnp.asarray(picture[:, :3, :5])))
    assert odd.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(odd[:, 0, 0], picture[:, :2, :2].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(odd[:, 1, 0], picture[:, 2, :2].mean(1), rtol=1e-6)
    np.testing.assert_allclose(odd[:, 1, 2], picture[:, 2, 4], rtol=1e-6)


# ControlNet-LLLite --------------------------------------------------------

SITES = {
    "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (1, 8),
    "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q": (1, 8),
    "mid_block_attentions_0_transformer_blocks_0_attn1_to_v": (2, 16),
}


def lllite_by_hand(tensors, module, picture, x, scale):
    """x + m up(relu(mid([c, relu(down(x))]))), c from convolutions whose kernels tile the picture."""

    def of(layer):
        return tuple(tensors[f"lllite_unet_{module}.{layer}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias"))

    c = picture.astype(np.float64).transpose(0, 3, 1, 2)
    layers = [i for i in (0, 2, 4) if f"lllite_unet_{module}.conditioning1.{i}.weight" in tensors]
    for i in layers:
        weight, bias = of(f"conditioning1.{i}")
        k = weight.shape[-1]
        b, channels, height, width = c.shape
        tiles = c.reshape(b, channels, height // k, k, width // k, k)
        c = np.einsum("bcykxl,ockl->boyx", tiles, weight) + bias[:, None, None]
        c = c if i == layers[-1] else np.maximum(c, 0)
    c = c.reshape(*c.shape[:2], -1).transpose(0, 2, 1)

    def dense(layer, x):
        weight, bias = of(layer)
        return x @ weight.T + bias

    inner = np.maximum(dense("down.0", x.astype(np.float64)), 0)
    inner = np.maximum(dense("mid.0", np.concatenate([c, inner], -1)), 0)
    return x + np.asarray(scale, np.float64).reshape(-1, 1, 1) * dense("up.0", inner)


def test_an_lllite_is_kohyas(tmp_path):
    """Each layer's step against float64, then all of them where they stand in a U-Net."""
    tensors = lllite_tensors(SITES)
    save_file(tensors, tmp_path / "x.safetensors")
    net = load_controlnet(tmp_path / "x.safetensors")
    rng = np.random.default_rng(0)
    picture = rng.uniform(-1, 1, (2, 64, 96, 3)).astype(np.float32)
    params = net.params({})
    tokens = LLLiteTokens(net.config).apply({"params": params}, jnp.asarray(picture))
    scale = np.array([0.5, 0.0], np.float32)
    steps = lllite_steps(params, tokens, scale)
    for (module, (depth, width)), (path, step) in zip(SITES.items(), steps.items(), strict=True):
        count = 64 * 96 // (8 * 2 ** (depth - 1)) ** 2
        x = rng.standard_normal((2, count, width)).astype(np.float32)
        wanted = lllite_by_hand(tensors, module, picture, x, scale)
        np.testing.assert_allclose(step(jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-5)
        assert np.array_equal(step(jnp.asarray(x))[1], x[1]), "with no strength nothing is added"
        assert np.abs(wanted[0] - x[0]).max() > 1e-2
        one = replace(step, tokens=step.tokens[:1], scale=0.5)(jnp.asarray(x))
        np.testing.assert_allclose(one[:1], step(jnp.asarray(x))[:1], rtol=1e-6)
        with pytest.raises(ValueError, match="shown a picture of .* tokens where the U-Net's has 5"):
            step(jnp.ones((2, 5, width)))
        assert ".".join(path).replace(".", "_") == module


def test_an_lllite_stands_before_its_layers():
    """In the U-Net as everywhere: what stands before a layer is called with what goes into it."""
    unet, params = UNetConfig.from_dict(UNET), unet_params()
    rng = np.random.default_rng(1)
    x, t = jnp.asarray(rng.standard_normal((2, 8, 8, 4)), jnp.float32), jnp.array([1.0, 700.0])
    conditions = Conditions(jnp.asarray(rng.standard_normal((2, 5, 16)), jnp.float32))
    path = ("down_blocks.0", "attentions.0", "transformer_blocks.0", "attn1", "to_q")
    seen = []

    def watch(x):
        seen.append(x.shape)
        return x + 1

    @jax.jit
    def run(params):
        return UNet(unet).apply({"params": params}, x, t, conditions)

    before = put_before(params, {path: watch})
    shown = UNet(unet).apply({"params": before}, x, t, conditions)
    kernel = params[path[0]][path[1]][path[2]][path[3]][path[4]]["kernel"]
    with_bias = put_before(params, {})
    assert seen == [(2, 64, 8)] and jax.tree.structure(with_bias) == jax.tree.structure(params)
    by_hand = jax.tree.map(lambda leaf: leaf, params)
    by_hand[path[0]][path[1]][path[2]][path[3]][path[4]] = {"kernel": kernel, "bias": kernel.sum(0)}
    np.testing.assert_allclose(shown, run(by_hand), rtol=1e-4, atol=1e-5)
    assert np.abs(shown - run(params)).max() > 1e-4
    twice = put_before(before, {path: watch})
    assert len(twice[path[0]][path[1]][path[2]][path[3]][path[4]]["before"]) == 2
    assert "before" not in params[path[0]][path[1]][path[2]][path[3]][path[4]]
    with pytest.raises(KeyError):
        put_before(params, {("down_blocks.7", "conv"): watch})
