"""The layers against plain NumPy, and the attention's blocked form against the whole score matrix."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import UNetConfig
from sdjax.nn import attention, layers, resnet
from sdjax.nn.clip import end_of_text
from sdjax.nn.conditioning import Added, Conditions
from sdjax.nn.shapes import expected_params
from sdjax.nn.unet import UNet, time_shifts
from tests.checkpoints import random_params


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """The definition, float64, whole score matrix."""
    scores = np.einsum("blkd,bmkd->bklm", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bklm,bmkd->blkd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (4096, 77), (2048, 2048), (1000, 1500)])
def test_attention_is_the_definition(queries, keys):
    rng = np.random.default_rng(0)
    q = 3 * rng.standard_normal((1, queries, 2, 8))
    k, v = rng.standard_normal((2, 1, keys, 2, 8))
    got = attention.attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got, softmax_attention(q, k, v, False), atol=5e-6)


def test_causal_attention_sees_no_later_token():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 9, 2, 4))
    got = attention.attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), causal=True)
    np.testing.assert_allclose(got, softmax_attention(q, k, v, True), atol=5e-6)


def test_no_program_holds_the_whole_score_matrix():
    shape = jax.ShapeDtypeStruct((2, 4096, 8, 40), jnp.float32)
    compiled = jax.jit(attention.attention).lower(shape, shape, shape).compile()
    whole = 2 * 8 * 4096 * 4096 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 8


def test_attention_has_gradients():
    q = jax.random.normal(jax.random.key(0), (1, 2048, 1, 4))

    def total(q):
        return jnp.sum(jnp.sin(attention.attention(q, q, q)))

    step = 1e-2 * jax.random.normal(jax.random.key(1), q.shape)
    along = jnp.vdot(jax.grad(total)(q), step)
    assert float(total(q + step) - total(q - step)) / 2 == pytest.approx(float(along), rel=2e-2)


def test_group_norm_is_the_definition():
    x = 5 + np.random.default_rng(0).standard_normal((2, 3, 4, 8))
    got = layers.GroupNorm(4, 1e-5, jnp.float32).apply(
        {"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, jnp.asarray(x, jnp.float32)
    )
    grouped = x.reshape(2, 12, 4, 2)
    normed = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, normed.reshape(x.shape) * np.arange(8) + 1, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mean", [0, 3, 60])
def test_moments_of_16_bits_are_those_of_float64(dtype, mean):
    """In one pass, however far the mean is from 0 in deviations."""
    x = np.asarray(np.random.default_rng(0).normal(mean, 1, (2, 16, 16, 8)).astype(jnp.dtype(dtype)))
    got = layers.GroupNorm(2, 1e-5, jnp.float32).apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
    wide = x.astype(np.float64).reshape(2, -1, 2, 4)
    centred = wide - wide.mean((1, 3), keepdims=True)
    want = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, want.reshape(x.shape), atol=2e-3 if mean == 60 else 2e-5)


def test_activations():
    x = np.linspace(-4, 4, 41)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    np.testing.assert_allclose(layers.quick_gelu(jnp.asarray(x, jnp.float32)), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_timestep_embedding_of_a_fraction():
    got = np.asarray(layers.timestep_embedding(jnp.array([20.5]), 6))[0]
    frequencies = 10000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(got, [*np.cos(20.5 * frequencies), *np.sin(20.5 * frequencies)], atol=2e-6)


def test_nearest_reads_the_pixels_that_torch_reads():
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    assert resnet.nearest(x, (2, 1))[0, :, 0, 0].tolist() == [0, 4]  # pixel centres would give 2 and 6
    assert resnet.nearest(x[:, :3], (5, 1))[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2]
    assert resnet.nearest(x[:, :2], (4, 2))[0, :, 0, 0].tolist() == [0, 0, 1, 1]


def test_downsampling_is_not_same_padding():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    params = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}}
    unet = resnet.Downsample(1, jnp.float32).apply(params, x)
    vae = resnet.Downsample(1, jnp.float32, asymmetric=True).apply(params, x)
    assert unet[0, :, :, 0].tolist() == [[0, 0], [0, 5]]
    assert vae[0, :, :, 0].tolist() == [[0, 2], [8, 10]]


def test_end_of_text():
    ids = jnp.array([[9, 3, 5, 7, 7], [9, 7, 7, 7, 7]])
    assert end_of_text(ids, 7).tolist() == [3, 1]
    assert end_of_text(ids, 2).tolist() == [0, 0]  # transformers' old rule for the published configs: the largest id


SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def drawn(config: UNetConfig) -> dict:
    """Random parameters, drawn on the host: there is nothing to compile."""
    return {"params": random_params(expected_params({"unet": config})["unet"], np.float32, 2)}


def test_hoisted_keys_and_values_change_nothing():
    config = UNetConfig.from_dict(SMALL)
    x, t = jax.random.normal(jax.random.key(0), (2, 9, 6, 4)), jnp.array([3.0, 700.5])
    context = jax.random.normal(jax.random.key(1), (2, 5, 6))
    params = drawn(config)
    hoisted = attention.cross_keys_values(params["params"], context, jnp.float32)
    assert len(hoisted) == 4  # one transformer down, two up, one in the middle
    apply = jax.jit(UNet(config).apply)
    got, want = (apply(params, x, t, Conditions(text)) for text in (hoisted, context))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"num_class_embeds": 7},
        {"time_cond_proj_dim": 5},
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 11},
    ],
)
def test_hoisted_times_change_nothing(told):
    """The time's part of every resnet, made before the run: also with all else that is added to it."""
    config = UNetConfig.from_dict(SMALL | told)
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jnp.array([3.0, 700.5])
    context = jax.random.normal(jax.random.key(1), (2, 5, 6))
    more = {
        "added": Added(jnp.ones((2, 3)), jnp.array([[9.0, 1.0], [4.0, 0.0]]))
        if "addition_embed_type" in told
        else None,
        "class_labels": jnp.array([2, 5]) if "num_class_embeds" in told else None,
        "guidance": jax.random.normal(jax.random.key(3), (2, 5)) if "time_cond_proj_dim" in told else None,
    }
    params, given = drawn(config), Conditions(context, **more)
    shifts = time_shifts(config, jnp.float32, params["params"], t, given)
    assert len(shifts) == 8  # one resnet on each level down, two in the middle, two on each level up
    assert {shift.shape for shift in shifts.values()} == {(2, 8), (2, 16)}
    apply = jax.jit(UNet(config).apply)
    want = apply(params, x, t, given)
    np.testing.assert_allclose(apply(params, x, shifts, Conditions(context)), want, atol=1e-5)
